"""top1, top5, macro_f1 and ece of logits, each with its interval. Letters: N images, K classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finetune.evaluation.intervals import bootstrap, wilson
from finetune.types import Interval


def top1(logits: Tensor, targets: Tensor) -> float:
    """Yield the share of images whose largest logit is the right one."""
    return float((logits.argmax(dim=1) == targets).double().mean())


def measure(logits: Tensor, targets: Tensor) -> dict[str, Interval]:
    """Yield the metrics of (N, K) logits; top5 only where there are more than five classes.

    macro_f1 averages over the classes that occur. ece is the expected calibration error in 15 bins.
    Source of ece: Guo et al. 2017, arXiv:1706.04599.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

    count, num_classes = logits.shape
    probabilities = logits.softmax(dim=1)
    guesses = logits.argmax(dim=1)

    def macro_f1(chosen: np.ndarray) -> float:
        index = torch.from_numpy(chosen)
        return float(multiclass_f1_score(guesses[index], targets[index], num_classes=num_classes, average="macro"))

    def ece(chosen: np.ndarray) -> float:
        index = torch.from_numpy(chosen)
        return float(
            multiclass_calibration_error(probabilities[index], targets[index], num_classes=num_classes, n_bins=15)
        )

    found = {"top1": wilson(top1(logits, targets), count)}
    if num_classes > 5:
        hits = (logits.topk(5, dim=1).indices == targets[:, None]).any(dim=1).double().mean()
        found["top5"] = wilson(float(hits), count)
    return found | {"macro_f1": bootstrap(macro_f1, count), "ece": bootstrap(ece, count)}


def confusion(logits: Tensor, targets: Tensor) -> list[list[int]]:
    """Yield counts by true class (rows) and predicted class (columns)."""
    num_classes = logits.shape[1]
    flat = targets * num_classes + logits.argmax(dim=1)
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).tolist()
