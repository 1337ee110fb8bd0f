"""The objective of training for each task, in one table: what is minimised, and what is measured on val.

Letters: B batch, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from finetune.evaluation.labels import mean_average_precision
from finetune.evaluation.metrics import top1
from finetune.evaluation.numbers import JudgedNumbers, r2
from finetune.features.families import FAMILIES, Family
from finetune.tasks import TASKS, Scale, Task


@dataclass(frozen=True, slots=True)
class Objective:
    """A task as training sees it.

    `score` judges outputs (N, K) against targets by what epochs are compared by (more is better), `loss` is what is
    said of val whatever is minimised, and `hits` counts a batch's right guesses where an image has one class.
    """

    task: Task
    score: Callable[[Tensor, Tensor], float]
    loss: Callable[..., Tensor]
    family: Family  # of heads that are solved
    scale: Scale | None = None  # of numbers: training sees them in deviations from the mean

    @property
    def name(self) -> str:
        """What the score is called."""
        return TASKS[self.task].score

    def seen(self, targets: Tensor) -> Tensor:
        """Return targets as training sees them."""
        return targets if self.scale is None else (targets - self.scale.mean) / self.scale.deviation

    def summed(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the loss summed over images, a mean over the classes of each where it may have several."""
        columns = 1 if targets.ndim == 1 else targets.shape[1]
        return float(self.loss(outputs, targets, reduction="sum")) / columns

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return how many of a batch are guessed right, (); 0 if images have no single class."""
        if self.task != "classify":
            return torch.zeros((), dtype=torch.int64, device=logits.device)
        return (logits.argmax(dim=1) == targets).sum()


def _r2(outputs: Tensor, targets: Tensor) -> float:
    judged = JudgedNumbers.of(outputs, targets, ())
    return r2(judged.guesses, judged.right, torch.ones(len(targets)).double().numpy())


def objective_of(task: Task, scale: Scale | None = None) -> Objective:
    """Return the objective of a task; for numbers, with the scale in which training sees them."""
    score, loss = OBJECTIVES[task]
    return Objective(task, score, loss, FAMILIES[task], scale)


OBJECTIVES: dict[Task, tuple[Callable[[Tensor, Tensor], float], Callable[..., Tensor]]] = {
    "classify": (top1, cross_entropy),
    "multilabel": (mean_average_precision, binary_cross_entropy_with_logits),
    "regress": (_r2, mse_loss),
}
CLASSES = objective_of("classify")
