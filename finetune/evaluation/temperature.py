"""Temperature scaling: one number by which logits are divided, so that a classifier is as sure as it is right.

Few val images tell little about it, and nothing if all of them are right. How overconfident classifiers usually are
after some kind of training is known, and counts more the fewer images there are. Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

MANY = 100  # independent images: from here on, what is usual hardly counts
COLDEST, HOTTEST = 0.05, 20.0  # what is looked at: of logits that are right on every image the best would be 0
ROUNDS = 60

Training = Literal["solved", "head", "deep", "smoothed", "other"]


@dataclass(frozen=True, slots=True)
class Usual:
    """The usual temperature: log-normal, with this median and this deviation of its logarithm."""

    median: float
    spread: float


USUAL: dict[Training, Usual] = {  # docs/log.md, 2026-11-30: what test images told, of few train images
    "solved": Usual(0.9, 0.3),
    "head": Usual(1.8, 0.5),
    "deep": Usual(4.0, 0.7),
    "smoothed": Usual(1.1, 0.4),  # as deep, of labels that are smoothed by a tenth
    "other": Usual(1.5, 1.0),  # what softens targets, or is none of these
}


@dataclass(frozen=True, slots=True)
class Temperature:
    """The likeliest temperature, and how much it gains.

    `gain` is the mean cross-entropy at 1 less that at `value`; `num_independent` counts copies and groups once; `usual`
    is the median of what it was held towards.
    """

    value: float
    gain: float
    num_images: int
    num_independent: int
    usual: float


def fit_temperature(
    logits: Tensor, targets: Tensor, *, usual: Usual, units: Sequence[int] | None = None
) -> Temperature:
    """Return the likeliest temperature of logits (N, K) against class indices (N,), knowing what is usual.

    That is where the cross-entropy of all independent images and half the square of its distance from the median, in
    deviations, are least in sum; the root of the derivative by log(1 / T) is bisected for.
    Source: Guo et al. 2017, arXiv:1706.04599 (by cross-entropy alone).
    """
    logits = logits.double()
    shown = logits.gather(1, targets[:, None])[:, 0]
    count = len(targets) if units is None else len(np.unique(np.asarray(units)))

    def slope(sharpness: float) -> float:
        of_images = float(((logits * sharpness).softmax(dim=1) * logits).sum(dim=1).mean() - shown.mean())
        return count * sharpness * of_images + math.log(sharpness * usual.median) / usual.spread**2

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    value = 1 / (low * high) ** 0.5
    gain = float(cross_entropy(logits, targets) - cross_entropy(logits / value, targets))
    return Temperature(value, gain, len(targets), count, usual.median)


def divide_logits(heads: Sequence[torch.nn.Module], value: float) -> None:
    """Have classifiers yield their logits divided by a temperature: weights and biases of the last layer are."""
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.div_(value)
