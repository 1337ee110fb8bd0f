"""The tasks, in one table: what an image is judged by and how outputs become answers. Free of torch.

What computes under a task asks a table of its own by the same names: losses (`settings.TASK_LOSSES`), objectives
(`train/objectives.py`), metrics (`evaluation/metrics.py`), answers (`evaluation/predictions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune.types import Task

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
