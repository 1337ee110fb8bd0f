"""Which epoch is delivered: the last one, unless val found an earlier one better beyond chance.

Picking the epoch with the highest val top1 out of thirty is picking by chance if val is small: on 10 images per
class that cost 2 to 6 points on unseen images (docs/log.md). A later epoch has learned longer and, on a
falling learning rate, settled. The score of another task (mAP, R2) has the same yardstick: the share of val that
5 images are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

TOLD_APART = 5  # val images: the fewest for which a sign test can rule out chance (p = 1/32)


class EpochOnVal(Protocol):
    """What the choice of the delivered epoch depends on."""

    @property
    def epoch(self) -> int: ...

    @property
    def score(self) -> float | None: ...

    @property
    def val_loss(self) -> float | None: ...


def delivered(history: Sequence[EpochOnVal], num_val: int) -> int:
    """Return the number of the last epoch that is less than 5 val images behind the best one up to then."""
    most, chosen = -math.inf, 0
    for line in history:
        right = round(measured(line)[0] * num_val)
        most = max(most, right)
        if right > most - TOLD_APART:
            chosen = line.epoch
    return chosen


def best(history: Sequence[EpochOnVal]) -> int:
    """Return the number of the epoch with the highest score on val; of equals the lowest val loss, then the first."""
    return max(history, key=lambda line: (measured(line)[0], -measured(line)[1])).epoch


def is_better(history: Sequence[EpochOnVal], *, by: str, gain: float) -> bool:
    """Return whether the last epoch is better than all before it, for patience.

    By "score" it must have more by `gain` (without one an equal score with a lower loss will do), by "loss" less.
    """
    *before, last = history
    if by == "loss":
        losses = [measured(line)[1] for line in before]
        return measured(last)[1] < min(losses, default=math.inf) - gain
    if not gain:
        return best(history) == last.epoch
    return measured(last)[0] > max((measured(line)[0] for line in before), default=-math.inf) + gain


def measured(line: EpochOnVal) -> tuple[float, float]:
    """Return the score (top1, mAP or R2) and the loss on val of an epoch of a run that has a val."""
    assert line.score is not None and line.val_loss is not None
    return line.score, line.val_loss
