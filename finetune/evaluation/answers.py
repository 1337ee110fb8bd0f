"""What outputs say of images, in the form in which labels say it. Letters: N images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune.tasks import AnyTarget, Labels, Quantity, Target, Task


def answers(task: Task, outputs: Tensor, thresholds: Sequence[float] = ()) -> list[AnyTarget]:
    """Return what outputs (N, K) say of each image; of several classes those at or above their thresholds."""
    return ANSWERS[task](outputs, thresholds)


def _classes(outputs: Tensor, thresholds: Sequence[float]) -> list[AnyTarget]:
    return [Target(index) for index in outputs.argmax(dim=1).tolist()]


def _sets(outputs: Tensor, thresholds: Sequence[float]) -> list[AnyTarget]:
    is_said = outputs.double().sigmoid() >= torch.tensor(thresholds, dtype=torch.float64)  # (N, K)
    return [Labels(tuple(row.nonzero()[:, 0].tolist()), outputs.shape[1]) for row in is_said]


def _numbers(outputs: Tensor, thresholds: Sequence[float]) -> list[AnyTarget]:
    return [Quantity(value) for value in outputs[:, 0].tolist()]


ANSWERS: dict[Task, Callable[[Tensor, Sequence[float]], list[AnyTarget]]] = {
    "classify": _classes,
    "multilabel": _sets,
    "regress": _numbers,
}
