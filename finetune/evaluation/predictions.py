"""Naming what images show: read in threads, a batch at a time, whatever computes the probabilities.

Memory holds a few batches, however many images there are. Letters: B batch, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.bands import COLOURS, Bands
from finetune.data.asked_images import Images, ImageSource
from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.errors import RecipeError
from finetune.evaluation.named import LabelsPrediction, Named, NumberPrediction, Prediction, Row
from finetune.evaluation.prediction_rows import AnswerLayout
from finetune.images.decode import Decoded, UndecodableError, examine, examine_open
from finetune.images.depths import DepthsSeen
from finetune.images.levels import Range
from finetune.images.remarks import Remarks
from finetune.process import num_cores
from finetune.tasks import TASKS, Activation, Task
from finetune.types import Event, OnEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a batch of images is said to show: probabilities (B, K), and where they were asked for, why an image had
    better not be named (B,) and what reaches the head (B, D)."""

    probabilities: NDArray[np.float32]
    unsure: Sequence[str] | None = None
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Scorer(Generic[T]):
    """What names images: `prepare` turns an image into the input of `answers`.

    Of several classes those are said that reach their `thresholds`; what is computed of numbers are the numbers.
    """

    classes: tuple[str, ...]
    value_range: Range | None  # what is black and white in images deeper than 8 bits
    prepare: Callable[[Any], T]
    answers: Callable[[Sequence[T]], Answers]
    task: Task = "classify"
    thresholds: tuple[float, ...] = ()
    bands: Bands = COLOURS  # of the images that `prepare` takes


def check_top(task: Task, top: int) -> None:
    """Refuse to name the likeliest classes of a model that gives no single class.

    Raises:
        RecipeError: more than one answer is asked for, where an image has no single class.
    """
    if top > 1 and task != "classify":
        raise RecipeError(
            f"--top {top} is for models with one class per image; this one gives {TASKS[task].what}",
            hint="Leave it out." + " The probability of every class is given anyway." * (task == "multilabel"),
        )


def check_asked(scorer: Scorer[Any], layout: AnswerLayout, threshold: float | None) -> None:
    """Refuse requests that the model cannot answer.

    Raises:
        RecipeError: the likeliest of what is not one class; a threshold of it; probabilities of numbers.
    """
    check_top(scorer.task, layout.top)
    if threshold is not None and scorer.task != "classify":
        raise RecipeError(
            f"--threshold is for models with one class per image; this one gives {TASKS[scorer.task].what}",
            hint="Leave it out." + " Each class has a threshold of its own." * (scorer.task == "multilabel"),
        )
    if threshold is not None and not 0 < threshold <= 1:
        raise RecipeError(f"threshold = {threshold:g} is not a probability", hint="Give one above 0, up to 1.")
    if layout.has_scores and scorer.task == "regress":
        raise RecipeError("this model gives a number, not probabilities of classes", hint="Leave out --scores.")


class _Seen:
    """What to report at the end: how deep the images were, and what of their files was not seen."""

    def __init__(self, value_range: Range | None) -> None:
        self.depths, self.remarks = DepthsSeen(value_range), Remarks()

    def add(self, source: ImageSource, image: Decoded[T]) -> T:
        self.depths.add(image.span)
        self.remarks.add(source.name, image.remark)
        return image.content

    def notes(self) -> Iterator[str]:
        yield from self.remarks.notes()
        yield from self.depths.notes()


def predictions(
    scorer: Scorer[T],
    images: Images,
    layout: AnswerLayout,
    *,
    batch_size: int,
    threshold: float | None = None,
    on_event: OnEvent,
) -> Iterator[Named]:
    """Yield a prediction for every image, in order; what a user should know is reported at the end.

    One that cannot be read has its problem in its place. Below a `threshold` an image is said to be unsure.
    """
    seen, done = _Seen(scorer.value_range), 0
    num_threads = num_cores(most=MOST_THREADS)
    for batch in read_ahead(partial(_read, scorer), _batches(images, batch_size), num_threads=num_threads):
        yield from _named(scorer, batch, layout, threshold, seen)
        done += len(batch)
        on_event(Event.progress("predict", done, images.total))
    for text in seen.notes():
        on_event(Event.warning(text))


def _batches(images: Iterable[ImageSource], batch_size: int) -> Iterator[list[ImageSource]]:
    order = iter(images)
    while batch := list(islice(order, batch_size)):
        yield batch


def _read(scorer: Scorer[T], source: ImageSource) -> tuple[ImageSource, Decoded[T] | str]:
    try:
        found = source.read()
        between, bands = scorer.value_range, scorer.bands
        if isinstance(found, bytes):
            return source, examine(found, scorer.prepare, value_range=between, bands=bands)
        return source, examine_open(found, scorer.prepare, value_range=between, bands=bands)
    except UndecodableError as error:
        return source, error.message
    except OSError as error:
        return source, f"cannot be read: {error.strerror or error}"


def _named(
    scorer: Scorer[T],
    batch: Sequence[tuple[ImageSource, Decoded[T] | str]],
    layout: AnswerLayout,
    threshold: float | None,
    seen: _Seen,
) -> Iterator[Named]:
    inputs = [seen.add(source, image) for source, image in batch if not isinstance(image, str)]
    answers = scorer.answers(inputs) if inputs else Answers(np.empty((0, len(scorer.classes)), dtype=np.float32))
    nothing = [None] * len(inputs)
    reasons, features = answers.unsure or [""] * len(inputs), nothing if answers.features is None else answers.features
    rows = zip(answers.probabilities, reasons, features, strict=True)
    for source, image in batch:
        if isinstance(image, str):
            yield Named(_unread(scorer, source.name, image, layout), None)
            continue
        row, unsure, reaching = next(rows)
        if not unsure and threshold is not None and row.max() < threshold:
            unsure = f"less likely than {threshold:g}"
        prediction = PREDICTIONS[scorer.task](scorer, source.name, row, layout)
        yield Named(replace(prediction, unsure=unsure, features=reaching), row)


def _unread(scorer: Scorer[Any], name: str, problem: str, layout: AnswerLayout) -> Prediction:
    scores: dict[str, float | None] = dict.fromkeys(scorer.classes) if layout.has_scores else {}
    kind = {"classify": Prediction, "multilabel": LabelsPrediction, "regress": NumberPrediction}[scorer.task]
    return kind(name, problem=problem, scores=scores)


def _scores(scorer: Scorer[Any], row: Row, layout: AnswerLayout) -> dict[str, float | None]:
    return dict(zip(scorer.classes, row.tolist(), strict=True)) if layout.has_scores else {}


def _class(scorer: Scorer[Any], name: str, row: Row, layout: AnswerLayout) -> Prediction:
    places = np.argsort(-row, kind="stable")[: layout.top].tolist()
    classes = tuple(scorer.classes[place] for place in places)
    return Prediction(name, classes, tuple(row[places].tolist()), scores=_scores(scorer, row, layout))


def _labels(scorer: Scorer[Any], name: str, row: Row, layout: AnswerLayout) -> Prediction:
    order = np.argsort(-row, kind="stable")
    places = order[row[order] >= np.array(scorer.thresholds)[order]].tolist()
    classes = tuple(scorer.classes[place] for place in places)
    return LabelsPrediction(name, classes, tuple(row[places].tolist()), scores=_scores(scorer, row, layout))


def _number(scorer: Scorer[Any], name: str, row: Row, layout: AnswerLayout) -> Prediction:
    return NumberPrediction(name, value=float(row[0]))


PREDICTIONS: dict[Task, Callable[[Scorer[Any], str, Row, AnswerLayout], Prediction]] = {
    "classify": _class,
    "multilabel": _labels,
    "regress": _number,
}


def probabilities_of(activation: Activation, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what outputs (B, K) mean: probabilities that sum to 1, one for each class, or plain numbers."""
    if activation == "softmax":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return found
    if activation == "sigmoid":
        shares = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        return shares.astype(np.float32)
    return outputs
