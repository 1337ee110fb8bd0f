"""Naming what image files show: read by threads, a batch at a time, whatever computes the probabilities.

Memory holds a few batches, however many files there are. Letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.images.decode import Decoded, UndecodableError, examine, read_content, remarks_of
from finetune.images.depths import before_model
from finetune.images.levels import Range, Span
from finetune.process import num_cores
from finetune.types import Event, OnEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why it could not be read."""

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""

    @property
    def label(self) -> str:
        """The likeliest class; empty for an image that could not be read."""
        return self.classes[0] if self.classes else ""


@dataclass(frozen=True, slots=True)
class Scorer(Generic[T]):
    """What names images: `prepare` makes of an RGB image what `probabilities` (B, K) are computed from."""

    classes: tuple[str, ...]
    value_range: Range | None  # what is black and white in images deeper than 8 bits
    prepare: Callable[[Image.Image], T]
    probabilities: Callable[[Sequence[T]], NDArray[np.float32]]


@dataclass(slots=True)
class _Seen:
    """What is to be said at the end: of each image that was read its span, and the files with a remark."""

    spans: list[Span | None] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def add(self, file: Path, image: Decoded[T]) -> T:
        self.spans.append(image.span)
        if image.remark:
            self.remarks.append((str(file), image.remark))
        return image.content

    def notes(self, value_range: Range | None) -> Iterator[str]:
        yield from remarks_of(self.remarks)
        yield from before_model(self.spans, value_range)


def predictions(
    scorer: Scorer[T], files: Sequence[Path], *, top: int, batch_size: int, on_event: OnEvent
) -> Iterator[Prediction]:
    """Yield a prediction for every file, in order; what a user should know of them is said at the end."""
    seen, done = _Seen(), 0
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    num_threads = num_cores(most=MOST_THREADS)
    for batch, images in zip(
        batches, read_ahead(partial(_read, scorer), batches, num_threads=num_threads), strict=True
    ):
        yield from _named(scorer, list(zip(batch, images, strict=True)), min(top, len(scorer.classes)), seen)
        done += len(batch)
        on_event(Event.progress("predict", done, len(files)))
    for text in seen.notes(scorer.value_range):
        on_event(Event.warning(text))


def _read(scorer: Scorer[T], file: Path) -> Decoded[T] | str:
    try:
        return examine(read_content(file), scorer.prepare, value_range=scorer.value_range)
    except UndecodableError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _named(
    scorer: Scorer[T], batch: Sequence[tuple[Path, Decoded[T] | str]], top: int, seen: _Seen
) -> Iterator[Prediction]:
    inputs = [seen.add(file, image) for file, image in batch if not isinstance(image, str)]
    rows = iter(scorer.probabilities(inputs) if inputs else ())  # each (K,)
    for file, image in batch:
        if isinstance(image, str):
            yield Prediction(str(file), problem=image)
            continue
        row: NDArray[np.float32] = next(rows)
        places = np.argsort(-row, kind="stable")[:top].tolist()
        yield Prediction(str(file), tuple(scorer.classes[place] for place in places), tuple(row[places].tolist()))
