"""A task that goes on and cannot tell how far it is: a screen shows that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finetune.types import Event, OnEvent


@contextmanager
def underway(task: str, on_event: OnEvent) -> Iterator[None]:
    """Report inside the block that a task is going on whose progress is unknown."""
    on_event(Event.progress(task, 0, None))
    try:
        yield
    finally:
        on_event(Event.progress(task, 1, 1))
