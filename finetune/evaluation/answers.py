"""What outputs say of images, in the form of labels. Letters: N images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.tasks import AnyTarget, Labels, Quantity, Target, Task
from finetune.types import Split


def answers(task: Task, outputs: Tensor, thresholds: Sequence[float] = ()) -> list[AnyTarget]:
    """Return what outputs (N, K) say of each image; with several classes, those at or above their thresholds."""
    return ANSWERS[task](outputs, thresholds)


def class_shares(task: Task, outputs: Mapping[Split, Tensor]) -> dict[Split, NDArray[np.float64]]:
    """Return the probabilities (N, K) of the classes from outputs (N, K), for each split; nothing for numbers."""
    if task == "regress":
        return {}
    doubles = {name: rows.double() for name, rows in outputs.items()}
    return {
        name: (rows.sigmoid() if task == "multilabel" else rows.softmax(dim=1)).numpy()
        for name, rows in doubles.items()
    }


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
