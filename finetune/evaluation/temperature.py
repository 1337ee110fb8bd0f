"""Temperature scaling: one number by which logits are divided, so that a classifier is as sure as it is right.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

FEWEST = 100  # independent images: fewer tell too little of a temperature
SIGNIFICANT = 3.841  # of chi squared with one degree of freedom: beyond it in 5 % of the cases, if 1 were right
COLDEST, HOTTEST = 0.05, 20.0  # what is looked at: of logits that are right on every image the best would be 0
ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Temperature:
    """The temperature with the least cross-entropy, and how much it brings.

    `gain` is the mean cross-entropy at 1 less that at `value`; `num_independent` counts copies and groups once.
    """

    value: float
    gain: float
    num_images: int
    num_independent: int

    @property
    def is_warranted(self) -> bool:
        """Whether there are 100 independent images or more, and a likelihood-ratio test rules out 1."""
        return self.num_independent >= FEWEST and 2 * self.num_independent * self.gain > SIGNIFICANT


def fit_temperature(logits: Tensor, targets: Tensor, *, units: Sequence[int] | None = None) -> Temperature:
    """Return the temperature of logits (N, K) against class indices (N,).

    The cross-entropy is convex in 1 / T, so the root of its derivative is bisected for.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    logits = logits.double()
    shown = logits.gather(1, targets[:, None])[:, 0]

    def slope(sharpness: float) -> float:
        return float(((logits * sharpness).softmax(dim=1) * logits).sum(dim=1).mean() - shown.mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    value = 1 / (low * high) ** 0.5
    gain = float(cross_entropy(logits, targets) - cross_entropy(logits / value, targets))
    count = len(targets) if units is None else len(np.unique(np.asarray(units)))
    return Temperature(value, gain, len(targets), count)


def divide_logits(heads: Sequence[torch.nn.Module], value: float) -> None:
    """Have classifiers yield their logits divided by a temperature: weights and biases of the last layer are."""
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.div_(value)
