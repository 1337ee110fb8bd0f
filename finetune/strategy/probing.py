"""How well a linear model on features tells what images show, by the task: fitted to the other images, with intervals.

That is top1 for one class, mean average precision for several, the share of explained variance for a number (at
least 0). Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.split import first_of_units
from finetune.data.targets import strata
from finetune.evaluation.intervals import paired, percentiles, share
from finetune.evaluation.labels import RankedImages, resamples_of
from finetune.evaluation.numbers import r2
from finetune.features.ridge import loo_guesses
from finetune.features.ridge_values import ValueRidge, best_left_out
from finetune.features.scaling import blocks
from finetune.tasks import Task
from finetune.types import FEWEST_PROBED, Interval

Units = Sequence[int] | None
Widths = Sequence[int] | None  # of features of several layer groups: how many each has


class Probing(Protocol):
    """Judges features by what a model fitted without an image says of it (N, ...)."""

    def judged(self, features: Tensor, targets: Tensor, units: Units, widths: Widths = None) -> NDArray[Any]: ...

    def value(self, judged: NDArray[Any], targets: Tensor) -> float: ...

    def interval(self, judged: NDArray[Any], targets: Tensor, units: Units) -> Interval: ...

    def difference(self, judged: NDArray[Any], other: NDArray[Any], targets: Tensor, units: Units) -> Interval: ...

    def chance(self, targets: Tensor) -> float | None: ...


class _OneClass:
    """Judges by whether a ridge classifier fitted to the other units gets each image right (N,)."""

    def judged(self, features: Tensor, targets: Tensor, units: Units, widths: Widths = None) -> NDArray[Any]:
        if _num_units(targets, units) < FEWEST_PROBED:
            return np.zeros(len(targets), dtype=bool)
        return (loo_guesses(features, targets, units=units, widths=widths) == targets).numpy()

    def value(self, judged: NDArray[Any], targets: Tensor) -> float:
        return float(judged.mean())

    def interval(self, judged: NDArray[Any], targets: Tensor, units: Units) -> Interval:
        return share(judged, units)

    def difference(self, judged: NDArray[Any], other: NDArray[Any], targets: Tensor, units: Units) -> Interval:
        return paired(judged, other, units)

    def chance(self, targets: Tensor) -> float | None:
        return None  # it is that of the number of classes


Weighed = Callable[[NDArray[Any] | None], float]  # a measure of images (N,) by how often each counts, or once each


@dataclass(frozen=True, slots=True)
class _Values:
    """Judges by the values (N, K) that a ridge regression fitted to the other units gives each image.

    `measure` is made of values and of what is right, both (N, K).
    """

    measure: Callable[[NDArray[Any], NDArray[Any]], Weighed]
    of_a_guess: Callable[[Tensor], float]

    def judged(self, features: Tensor, targets: Tensor, units: Units, widths: Widths = None) -> NDArray[Any]:
        if _num_units(targets, units) < FEWEST_PROBED:
            return targets.double().mean(dim=0).expand(targets.shape).numpy()
        return best_left_out(ValueRidge.of(features, targets, widths), blocks(units))[0].numpy()

    def value(self, judged: NDArray[Any], targets: Tensor) -> float:
        return self.measure(judged, targets.numpy())(None)

    def interval(self, judged: NDArray[Any], targets: Tensor, units: Units) -> Interval:
        return interval_of(self.measure(judged, targets.numpy()), judged.shape, units)

    def difference(self, judged: NDArray[Any], other: NDArray[Any], targets: Tensor, units: Units) -> Interval:
        measures = [self.measure(values, targets.numpy()) for values in (judged, other)]
        return interval_of(lambda weight: measures[0](weight) - measures[1](weight), judged.shape, units)

    def chance(self, targets: Tensor) -> float | None:
        return self.of_a_guess(targets)


def interval_of(measure: Weighed, shape: tuple[int, ...], units: Units) -> Interval:
    """Return a measure of images (N, K), with its interval over resamples of whole units."""
    return percentiles(measure(None), [measure(weight) for weight in resamples_of(shape, units)])


def gain(probing: Probing, judged: NDArray[Any], features: Tensor, targets: Tensor, units: Units) -> Interval:
    """Return what the probe gains from twice the images: against models fitted to one half, every class halved.

    It is unknown if the images are too few to be halved.
    """
    unit = np.arange(len(targets)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    first = torch.tensor(first_of_units(unit.tolist()))
    by_class = torch.from_numpy(strata(targets[first].numpy()))
    order = torch.argsort(by_class, stable=True).numpy()  # of units: none is divided
    if len(order) // 2 < FEWEST_PROBED:
        return Interval(0.0, -1.0, 1.0)
    of_halves = np.zeros_like(judged)
    for start in (0, 1):
        half = torch.from_numpy(np.flatnonzero(np.isin(unit, order[start::2])))
        own = None if units is None else [int(unit[place]) for place in half.tolist()]
        of_halves[half.numpy()] = probing.judged(features[half], targets[half], own)
    return probing.difference(judged, of_halves, targets, units)


def _num_units(targets: Tensor, units: Units) -> int:
    return len(targets) if units is None else len(set(units))


def precision_measure(scores: NDArray[Any], right: NDArray[Any]) -> Weighed:
    """Return the mean average precision of scores (N, K) as a function of how often each image counts."""
    return RankedImages.of(scores, right > 0).mean


def explained_measure(guesses: NDArray[Any], right: NDArray[Any]) -> Weighed:
    """Return the share of the variance of numbers (N, 1) that is explained, 0 at least, as such a function."""
    said, numbers = guesses[:, 0].astype(np.float64), right[:, 0].astype(np.float64)

    def explained(weight: NDArray[Any] | None) -> float:
        counted = np.ones(len(numbers)) if weight is None else weight.astype(np.float64)
        return max(0.0, r2(said, numbers, counted))

    return explained


PROBES: dict[Task, Probing] = {
    "classify": _OneClass(),
    "multilabel": _Values(precision_measure, lambda targets: float(targets.mean())),
    "regress": _Values(explained_measure, lambda targets: 0.0),
}
