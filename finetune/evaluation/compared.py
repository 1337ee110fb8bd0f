"""Runs asked about the same images, compared by their task: what they reach over seeds, and which is better.

Letters: S seeds, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.intervals import over_seeds, paired_over_seeds, percentiles, with_seeds
from finetune.evaluation.labels import RankedImages, resamples_of
from finetune.evaluation.numbers import r2
from finetune.tasks import Task
from finetune.types import Interval

Units = Sequence[int] | None
Weighed = Callable[[NDArray[Any]], float]  # a measure of images (N,) by how often each counts


class Comparing(Protocol):
    """Compares runs by what they said of each image (S, N, ...) and what is right (N, ...)."""

    def score(self, said: NDArray[Any], right: NDArray[Any], units: Units) -> Interval: ...

    def difference(self, said: NDArray[Any], other: NDArray[Any], right: NDArray[Any], units: Units) -> Interval: ...


class _OneClass:
    """Compares by the share of right images: intervals of shares, and of pairs of answers to the same image."""

    def score(self, said: NDArray[Any], right: NDArray[Any], units: Units) -> Interval:
        return over_seeds(said == right, units)

    def difference(self, said: NDArray[Any], other: NDArray[Any], right: NDArray[Any], units: Units) -> Interval:
        return paired_over_seeds(said == right, other == right, units)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Compares by a measure of all images together: percentiles over resamples, the same images for all runs."""

    measure: Callable[[NDArray[Any], NDArray[Any]], Weighed]  # of what was said and what is right, (N, K) each
    lowest: float

    def score(self, said: NDArray[Any], right: NDArray[Any], units: Units) -> Interval:
        return self._over([self.measure(outputs, right) for outputs in said], said.shape, units, self.lowest)

    def difference(self, said: NDArray[Any], other: NDArray[Any], right: NDArray[Any], units: Units) -> Interval:
        pairs = [(self.measure(a, right), self.measure(b, right)) for a, b in zip(said, other, strict=True)]
        gaps = [_gap(*pair) for pair in pairs]
        return self._over(gaps, said.shape, units, self.lowest - 1)

    @staticmethod
    def _over(measures: Sequence[Weighed], shape: tuple[int, ...], units: Units, lowest: float) -> Interval:
        count, *of_run = shape
        once = np.ones(of_run[0])
        by_seed = np.array([measure(once) for measure in measures])
        drawn = [
            mean(measure(weight.astype(float)) for measure in measures)
            for weight in resamples_of((of_run[0], count * of_run[1]), units)
        ]
        return with_seeds(percentiles(float(by_seed.mean()), drawn), by_seed, lowest=lowest)


def _gap(first: Weighed, second: Weighed) -> Weighed:
    return lambda weight: first(weight) - second(weight)


def _precision(outputs: NDArray[Any], right: NDArray[Any]) -> Weighed:
    return RankedImages.of(outputs, right > 0).mean


def _explained(outputs: NDArray[Any], right: NDArray[Any]) -> Weighed:
    return lambda weight: r2(outputs[:, 0], right[:, 0], weight)


COMPARED: dict[Task, Comparing] = {
    "classify": _OneClass(),
    "multilabel": _Measured(_precision, lowest=0.0),
    "regress": _Measured(_explained, lowest=-np.inf),
}
