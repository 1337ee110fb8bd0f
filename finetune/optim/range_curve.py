"""The curve of a learning-rate range test, and which rates it suggests. Letters: S steps.

Source: Smith 2017, Cyclical learning rates for training neural networks, arXiv:1506.01186.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 3.0  # steps: the deviation of the kernel that smooths losses
LEFT_OUT = 0.05  # of the steps at the start: an optimiser's new averages are no guide
DIVERGED = 2.0  # a loss this many times the first is lost; nothing beyond it tells anything
FEWEST = 8  # steps


@dataclass(frozen=True, slots=True)
class RangeCurve:
    """The loss (S,) of a step at each of rising learning rates (S,), and what it is when smoothed.

    `steepest` is the rate at which it falls fastest with the logarithm of the rate, `valley` the one two thirds down
    its longest fall; None where it never falls.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    valley: float | None
    is_cut: bool  # the loss ran away before the last rate

    @property
    def suggested(self) -> float | None:
        """The rate to train at: `valley`."""
        return self.valley


def curve_of(rates: Sequence[float], losses: Sequence[float], *, is_cut: bool) -> RangeCurve:
    """Return the curve of the losses (S,) seen at rates (S,); the last losses may not be finite."""
    known = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    rates, losses = [rate for rate, _ in known], [loss for _, loss in known]
    smooth = smoothed(np.array(losses))
    first = min(int(len(smooth) * LEFT_OUT), max(len(smooth) - 2, 0))
    last = int(smooth.argmin()) if len(smooth) else 0
    steepest = valley = None
    if last - first >= 2:
        slopes = np.diff(smooth[first : last + 1]) / np.diff(np.log(rates[first : last + 1]))
        steepest = float(rates[first + int(slopes.argmin())]) if slopes.min() < 0 else None
        start, end = longest_fall(smooth[first:])
        valley = float(rates[first + start + (end - start) * 2 // 3]) if end > start else None
    return RangeCurve(tuple(rates), tuple(losses), tuple(smooth.tolist()), steepest, valley, is_cut)


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return losses (S,) averaged with their neighbours to both sides, so that a fall stays where it is."""
    steps = np.arange(len(losses))
    weights = np.exp(-(((steps[:, None] - steps) / WINDOW) ** 2) / 2)  # (S, S)
    found: NDArray[np.float64] = weights @ losses / weights.sum(axis=1)
    return found


def longest_fall(losses: Sequence[float] | NDArray[Any]) -> tuple[int, int]:
    """Return the first and last index of the longest subsequence in which each loss is below the one before."""
    best = [(1, place) for place in range(len(losses))]  # (length, where it begins) of the longest that ends here
    for here in range(len(losses)):
        for before in range(here):
            if losses[before] > losses[here] and best[before][0] + 1 > best[here][0]:
                best[here] = (best[before][0] + 1, best[before][1])
    if not best:
        return 0, 0
    end = max(range(len(best)), key=lambda place: (best[place][0], -place))
    return best[end][1], end


def has_run_away(losses: Sequence[float]) -> bool:
    """Return whether the last losses say that larger rates need not be tried."""
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) > FEWEST and float(np.mean(losses[-3:])) > DIVERGED * float(np.mean(losses[:3]))


def rising_rates(low: float, high: float, count: int) -> list[float]:
    """Return `count` rates from one to another, each larger than the one before by the same factor."""
    return [float(rate) for rate in np.geomspace(low, high, count)]
