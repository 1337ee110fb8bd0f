"""How close estimated numbers are: R2, mean absolute error, root mean squared error. Letters: N images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import percentiles
from finetune.types import Interval

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JudgedNumbers:
    """What metrics of numbers are computed from, and resamples of the images."""

    guesses: Numbers  # (N,)
    right: Numbers  # (N,)
    weights: Iterable[NDArray[Any]]  # each (N,): how often an image is drawn

    @staticmethod
    def of(outputs: Tensor, targets: Tensor, weights: Iterable[Any]) -> JudgedNumbers:
        """Return outputs (N, 1) against numbers (N, 1)."""
        return JudgedNumbers(outputs[:, 0].double().numpy(), targets[:, 0].double().numpy(), weights)

    def interval(self, measure: Callable[[Numbers, Numbers, Numbers], float]) -> Interval:
        """Return a measure of guesses, right numbers and weights (N,) with the percentiles of its resamples."""
        drawn = [measure(self.guesses, self.right, weight.astype(float)) for weight in self.weights]
        return percentiles(measure(self.guesses, self.right, np.ones(len(self.right))), drawn)


def r2(guesses: Numbers, right: Numbers, weight: Numbers) -> float:
    """Return the share of the variance that is explained: 1 - squared errors / squared distances from the mean.

    0 if all numbers are equal: then there is nothing to explain.
    """
    mean = np.average(right, weights=weight)
    spread = float((weight * (right - mean) ** 2).sum())
    return 1 - float((weight * (right - guesses) ** 2).sum()) / spread if spread > 0 else 0.0


def mae(guesses: Numbers, right: Numbers, weight: Numbers) -> float:
    """Return the mean absolute error."""
    return float(np.average(np.abs(right - guesses), weights=weight))


def rmse(guesses: Numbers, right: Numbers, weight: Numbers) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.average((right - guesses) ** 2, weights=weight)))
