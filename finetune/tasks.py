"""The tasks: what an image may have, and in one table what it is judged by and how outputs become answers.

What computes under a task asks a table of its own by the same names: losses (`values.TASK_LOSSES`), objectives
(`train/objectives.py`), metrics (`evaluation/metrics.py`), answers (`evaluation/predictions.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Task = Literal["classify", "multilabel", "regress"]
BETWEEN_LABELS = "|"  # in files that the tool writes, between the classes of one image
NUM_FIRST = 3  # of a task's metrics: as many as fit a line of 80 columns with their intervals


@dataclass(frozen=True, slots=True)
class Target:
    """What an image shows where it has one class: its index in the manifest's class list."""

    index: int

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)


@dataclass(frozen=True, slots=True)
class Labels:
    """What an image shows where it may have several classes, or none: their indices, ascending, of `num_classes`."""

    classes: tuple[int, ...]
    num_classes: int


@dataclass(frozen=True, slots=True)
class Quantity:
    """What an image shows where it has a number; the manifest's only class is the name of that number."""

    value: float

    @property
    def classes(self) -> tuple[int, ...]:
        return (0,)


AnyTarget = Target | Labels | Quantity

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a task is called by: the score of val that epochs are judged by (more is better), and what outputs need."""

    score: str
    activation: Activation
    fewest_classes: int
    what: str  # an image has, in words


@dataclass(frozen=True, slots=True)
class Scale:
    """The mean and the deviation of the numbers of train: training sees numbers as deviations from the mean."""

    mean: float
    deviation: float


TASKS: dict[Task, TaskFacts] = {
    "classify": TaskFacts("top1", "softmax", 2, "one class"),
    "multilabel": TaskFacts("mAP", "sigmoid", 2, "any number of classes"),
    "regress": TaskFacts("r2", "none", 1, "a number"),
}


def guess_loss(task: Task, num_classes: int) -> float:
    """Return the loss of a guess: ln C, of several classes ln 2 for each, of a number in deviations its variance, 1."""
    return {"classify": math.log(max(num_classes, 2)), "multilabel": math.log(2), "regress": 1.0}[task]
