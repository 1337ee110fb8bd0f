"""95 % confidence intervals for what is measured on a finite number of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from finetune.types import Interval

Z95 = 1.959963984540054


def wilson(share: float, count: int) -> Interval:
    """Yield the score interval of a proportion seen on `count` images.

    Source: Wilson 1927, Probable inference, JASA 22.
    """
    if count == 0:
        return Interval(share, 0.0, 1.0)
    z2 = Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def paired(one: np.ndarray, other: np.ndarray) -> Interval:
    """Yield the interval of top1 of one minus top1 of another, from which images each got right.

    Both were asked about the same images, so only those count on which they differ: much is told
    apart that two separate intervals would leave open.
    Source: Agresti & Min 2005, Simple improved confidence intervals for comparing matched
    proportions, Statistics in Medicine 24.
    """
    count, gains, losses = len(one), int((one & ~other).sum()), int((other & ~one).sum())
    value = (gains - losses) / max(count, 1)
    centre = (gains - losses) / (count + 2)
    half = Z95 * math.sqrt(gains + losses + 1 - (gains - losses) ** 2 / (count + 2)) / (count + 2)
    return Interval(value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)))


def bootstrap(measure: Callable[[np.ndarray], float], count: int, *, draws: int = 300, seed: int = 0) -> Interval:
    """Yield the percentile interval of a measure of image indices, over seeded resamples."""
    generator = np.random.default_rng(seed)
    values = [measure(generator.integers(0, count, count)) for _ in range(draws)]
    low, high = np.quantile(values, [0.025, 0.975])
    value = measure(np.arange(count))
    return Interval(value, float(min(low, value)), float(max(high, value)))
