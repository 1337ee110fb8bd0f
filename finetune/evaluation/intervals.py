"""95 % confidence intervals for measures on a finite number of images.

Letters: S seeds, N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from finetune.randomness import Resamples
from finetune.types import Interval

Z95 = 1.959963984540054
FEW_T95 = (12.706, 4.303, 3.182, 2.776, 2.571)  # `t95` of 1, 2, ... degrees of freedom


def wilson(share: float, count: float) -> Interval:
    """Return the score interval of a proportion seen on `count` images.

    Source: Wilson 1927, Probable inference, JASA 22.
    """
    if count == 0:
        return Interval(share, 0.0, 1.0)
    z2 = Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def independent(values: np.ndarray, units: Sequence[int] | None) -> float:
    """Return how many independent values say as much about the mean as these, whose values within a unit are alike.

    The number of values over their design effect: the variance of the sums by unit over that of single
    values, at least 1. Where all values are equal, nothing tells how alike a unit is: its values count as one.
    Source: Kish 1965, Survey Sampling; Rao & Scott 1992, A simple method for clustered binary data, Biometrics 48.
    """
    count = len(values)
    if units is None or len(set(units)) == count:
        return float(count)
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    num_units = int(unit.max()) + 1
    rest = values.astype(float) - values.mean()
    scatter = float((rest**2).sum())
    if num_units < 2 or scatter < 1e-12:
        return float(num_units)
    effect = float((np.bincount(unit, weights=rest) ** 2).sum()) / scatter * num_units / (num_units - 1)
    return count / max(1.0, effect)


def share(hits: np.ndarray, units: Sequence[int] | None = None) -> Interval:
    """Return the score interval of a share of hits (N,), counting independent images."""
    return wilson(float(hits.mean()) if len(hits) else 0.0, independent(hits, units))


def paired(hits: np.ndarray, other_hits: np.ndarray, units: Sequence[int] | None = None) -> Interval:
    """Return the interval of the difference of two top1, from the images (N,) that each classifier got right.

    Both were asked about the same images, so only those count on which they differ: that tells much apart
    which two separate intervals would leave open. Shares over several answers to each image (N,) count
    like single answers. Images of one unit count as far as they are independent.
    Source: Agresti & Min 2005, Simple improved confidence intervals for comparing matched
    proportions, Statistics in Medicine 24.
    """
    gaps = hits.astype(float) - other_hits.astype(float)  # (N,)
    count = independent(gaps, units)
    shrunk = count / max(len(gaps), 1)
    gained, moved = float(gaps.sum()) * shrunk, float((gaps**2).sum()) * shrunk
    value = float(gaps.mean()) if len(gaps) else 0.0
    centre = gained / (count + 2)
    half = Z95 * math.sqrt(moved + 1 - gained**2 / (count + 2)) / (count + 2)
    return Interval(value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)))


def over_seeds(hits: np.ndarray, units: Sequence[int] | None = None) -> Interval:
    """Return the interval of the mean top1 of several seeds, from which images each seed got right (S, N).

    Other images and another seed would both have moved it: the ends are Wilson's over the images at
    the mean, and the t interval over the seeds, added as independent errors are (root of the sum of
    squares). One seed says nothing about seeds: the interval is Wilson's alone.
    """
    by_image = hits.mean(axis=0)
    images = wilson(float(hits.mean()), independent(by_image, units))
    return with_seeds(images, hits.mean(axis=1), lowest=0.0)


def paired_over_seeds(hits: np.ndarray, other_hits: np.ndarray, units: Sequence[int] | None = None) -> Interval:
    """Return the interval of the difference of two mean top1, from hits (S, N), seed by seed and image by image.

    The ends are put together as in `over_seeds`: of `paired` over the images, and of the t interval
    over the differences that each seed shows.
    """
    by_seed = hits.mean(axis=1) - other_hits.mean(axis=1)
    return with_seeds(paired(hits.mean(axis=0), other_hits.mean(axis=0), units), by_seed, lowest=-1.0)


def over_fold_values(values: Sequence[float]) -> Interval:
    """Return the t interval of the mean of the values on the folds of one data set.

    Folds share most of their train images, so that their values lie closer together than those of new data would: the
    variance counts 1 / K + 1 / (K - 1) of it, for the share of val in train, in place of 1 / K.
    Source: Nadeau & Bengio 2003, Inference for the generalization error, Machine Learning 52.
    """
    count = len(values)
    mean = float(np.mean(values))
    half = t95(count - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 / count + 1 / (count - 1))
    return Interval(mean, mean - half, mean + half)


def over_seed_values(measured: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of several seeds' values on the same images, each with its own interval.

    Ends are put together as in `over_seeds`: how far the images let each value reach, in the mean, and the t interval
    over the seeds. One seed has its own interval alone.
    """
    values = [one.value for one in measured]
    mean = float(np.mean(values))
    below, above = (float(np.mean([abs(end - one.value) for one, end in ends])) for ends in
                    ([(one, one.low) for one in measured], [(one, one.high) for one in measured]))  # fmt: skip
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    half = t95(len(values) - 1) * spread if len(values) > 1 else 0.0
    return Interval(mean, mean - math.hypot(below, half), mean + math.hypot(above, half))


def t95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.002.

    Source: Abramowitz & Stegun 1964, 26.7.5, an expansion that needs more than 5 degrees of freedom.
    """
    if freedom <= len(FEW_T95):
        return FEW_T95[freedom - 1]
    z = Z95
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def with_seeds(images: Interval, by_seed: np.ndarray, *, lowest: float) -> Interval:
    """Return an interval over images widened by what another seed would change, from the value of each seed (S,)."""
    count = len(by_seed)
    if count < 2:
        return images
    half = t95(count - 1) * float(by_seed.std(ddof=1)) / math.sqrt(count)
    below, above = (math.hypot(images.value - end, half) for end in (images.low, images.high))
    return Interval(images.value, max(lowest, images.value - below), min(1.0, images.value + above))


def bootstrap(
    measure: Callable[[np.ndarray], float],
    count: int,
    units: Sequence[int] | None = None,
    *,
    draws: int = 300,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of a measure of image indices, over seeded resamples of whole units."""
    places = np.arange(count)
    values = [measure(np.repeat(places, often)) for often in Resamples(count, units, draws=draws, seed=seed)]
    low, high = np.quantile(values, [0.025, 0.975])
    value = measure(places)
    return Interval(value, float(min(low, value)), float(max(high, value)))


def percentiles(value: float, drawn: Sequence[float]) -> Interval:
    """Return the interval of a value from its values on resamples of whole units."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(min(low, value)), float(max(high, value)))
