"""Naming what image files show: read by threads, a batch at a time, whatever computes the probabilities.

Memory holds a few batches, however many files there are. Letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.errors import RecipeError
from finetune.images.decode import Decoded, UndecodableError, examine, read_content, remarks_of
from finetune.images.depths import before_model
from finetune.images.levels import Range, Span
from finetune.process import num_cores
from finetune.tasks import BETWEEN_LABELS, TASKS, Activation, Task
from finetune.types import Event, OnEvent

T = TypeVar("T")
Row = NDArray[np.float32]  # (K,)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why it could not be read.

    `unsure` says, where that was asked for, why the image had better not be named; "" where it may be.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""
    unsure: str = ""

    @property
    def label(self) -> str:
        """The likeliest class; empty for an image that could not be read."""
        return self.classes[0] if self.classes else ""


@dataclass(frozen=True, slots=True)
class LabelsPrediction(Prediction):
    """The classes that one image is said to have, any number of them, the likeliest first.

    `scores` has the probability of every class; None of an image that could not be read.
    """

    scores: dict[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The classes, joined by |; empty where the image has none of them, or could not be read."""
        return BETWEEN_LABELS.join(self.classes)


@dataclass(frozen=True, slots=True)
class NumberPrediction(Prediction):
    """The number that one image is said to have."""

    value: float | None = None

    @property
    def label(self) -> str:
        """The number as text; empty for an image that could not be read."""
        return "" if self.value is None else repr(self.value)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a batch of images is said to show: probabilities (B, K), and why an image had better not be named (B,)."""

    probabilities: NDArray[np.float32]
    unsure: Sequence[str] | None = None  # not asked for


@dataclass(frozen=True, slots=True)
class Scorer(Generic[T]):
    """What names images: `prepare` makes of an RGB image what `answers` are computed from.

    Of several classes those are said that reach their `thresholds`; what is computed of numbers are the numbers.
    """

    classes: tuple[str, ...]
    value_range: Range | None  # what is black and white in images deeper than 8 bits
    prepare: Callable[[Image.Image], T]
    answers: Callable[[Sequence[T]], Answers]
    task: Task = "classify"
    thresholds: tuple[float, ...] = ()
    bands: int = 3  # channels of the images that `prepare` takes


def check_top(task: Task, top: int) -> None:
    """Refuse to name the likeliest of what is not one class.

    Raises:
        RecipeError: more than one answer is asked for, where an image has no single class.
    """
    if top > 1 and task != "classify":
        raise RecipeError(
            f"--top {top} is of models that give an image one class; this one gives {TASKS[task].what}",
            hint="Leave it away." + " The probability of every class is there anyway." * (task == "multilabel"),
        )


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
        return examine(read_content(file), scorer.prepare, value_range=scorer.value_range, num_bands=scorer.bands)
    except UndecodableError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _named(
    scorer: Scorer[T], batch: Sequence[tuple[Path, Decoded[T] | str]], top: int, seen: _Seen
) -> Iterator[Prediction]:
    inputs = [seen.add(file, image) for file, image in batch if not isinstance(image, str)]
    answers = scorer.answers(inputs) if inputs else Answers(np.empty((0, len(scorer.classes)), dtype=np.float32))
    rows = zip(answers.probabilities, answers.unsure or [""] * len(inputs), strict=True)
    for file, image in batch:
        if isinstance(image, str):
            yield _unread(scorer, str(file), image)
            continue
        row, unsure = next(rows)
        yield replace(PREDICTIONS[scorer.task](scorer, str(file), row, top), unsure=unsure)


def _unread(scorer: Scorer[Any], file: str, problem: str) -> Prediction:
    if scorer.task == "multilabel":
        return LabelsPrediction(file, problem=problem, scores=dict.fromkeys(scorer.classes))
    return (NumberPrediction if scorer.task == "regress" else Prediction)(file, problem=problem)


def _class(scorer: Scorer[Any], file: str, row: Row, top: int) -> Prediction:
    places = np.argsort(-row, kind="stable")[:top].tolist()
    return Prediction(file, tuple(scorer.classes[place] for place in places), tuple(row[places].tolist()))


def _labels(scorer: Scorer[Any], file: str, row: Row, top: int) -> Prediction:
    order = np.argsort(-row, kind="stable")
    places = order[row[order] >= np.array(scorer.thresholds)[order]].tolist()
    scores: dict[str, float | None] = dict(zip(scorer.classes, row.tolist(), strict=True))
    names = tuple(scorer.classes[place] for place in places)
    return LabelsPrediction(file, names, tuple(row[places].tolist()), scores=scores)


def _number(scorer: Scorer[Any], file: str, row: Row, top: int) -> Prediction:
    return NumberPrediction(file, value=float(row[0]))


PREDICTIONS: dict[Task, Callable[[Scorer[Any], str, Row, int], Prediction]] = {
    "classify": _class,
    "multilabel": _labels,
    "regress": _number,
}


def probabilities_of(activation: Activation, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what outputs (B, K) mean: probabilities that add up to 1, one for each class, or numbers as they are."""
    if activation == "softmax":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return found
    if activation == "sigmoid":
        shares = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        return shares.astype(np.float32)
    return outputs
