"""What fits into a time: fewer epochs of what was chosen, or a cheaper strategy. Pure, and free of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

WORTH = 1 / 3  # share of its epochs: with fewer, a cheaper strategy is taken instead


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy and the seconds it is predicted to take: once, and for each of its epochs."""

    strategy: str
    epochs: int
    least: int
    once: float
    epoch: float

    def seconds(self, epochs: int) -> float:
        """Return the seconds that a number of epochs takes."""
        return self.once + epochs * self.epoch

    def fitting(self, limit: float) -> int | None:
        """Return how many of its epochs fit into a number of seconds; None where not even the fewest do."""
        if self.seconds(self.least) > limit:
            return None
        if self.epoch <= 0:
            return self.epochs
        return min(self.epochs, max(self.least, math.floor((limit - self.once) / self.epoch)))

    def is_enough(self, limit: float) -> bool:
        """Return whether a third of its epochs fit into a number of seconds, so that no cheaper strategy is taken."""
        epochs = self.fitting(limit)
        return epochs is not None and epochs >= WORTH * self.epochs


def seconds_of(text: str) -> float:
    """Return the seconds of a time as recipes write it: 90s, 20m, 1h30m."""
    units = {"h": 3600, "m": 60, "s": 1}
    return float(sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([hms])", text)))


def told(seconds: float) -> str:
    """Return seconds as recipes write them, rounded up to what a person would say."""
    whole = math.ceil(seconds)
    if whole <= 120:
        return f"{max(whole, 1)}s"
    minutes = math.ceil(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{rest}m" if rest or not hours else "")


def choose(options: Sequence[Option], limit: float) -> tuple[Option, int] | None:
    """Return the first option with room for enough epochs, and how many; options are in order, cheaper ones last.

    Enough is a third of its epochs; failing that, the last option with room for any; None if there is none.
    """
    fitting = [(option, epochs) for option in options if (epochs := option.fitting(limit)) is not None]
    enough = (pair for pair in fitting if pair[0].is_enough(limit))
    return next(enough, fitting[-1] if fitting else None)
