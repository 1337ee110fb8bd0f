"""Ctrl-C and SIGTERM as a wish that the run honours at its next step, after writing a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune.errors import Interrupted


@dataclass(slots=True)
class Stop:
    """Whether a signal asked the run to stop; a second one stops it at once."""

    signal: int = 0

    def raise_if_asked(self, save: Callable[[], None], folder: Path) -> None:
        """Write a checkpoint and leave, if a signal came.

        Raises:
            Interrupted: one came; the hint says how to go on.
        """
        if not self.signal:
            return
        save()
        raise Interrupted(
            f"stopped by {signal.Signals(self.signal).name}; what was done is kept",
            hint=f"Go on with: finetune run --resume {folder}",
            exit_code=128 + self.signal,
        )


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread there is nothing to catch."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: FrameType | None) -> None:
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
