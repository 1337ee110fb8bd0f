"""Which epoch is delivered: the last one, unless val found an earlier one better beyond chance.

Picking the epoch with the highest val top1 out of thirty is picking by chance where val is small: on 10 images
a class that cost 2 to 6 points on unseen images (docs/strategies.md). A later epoch has learned longer and, on
a falling learning rate, come to rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TOLD_APART = 5  # val images: the fewest of which a sign test can say that it is no chance (p = 1/32)


def delivered(history: Sequence[Mapping[str, Any]], num_val: int) -> int:
    """Return the number of the last epoch that is less than 5 val images behind the best one up to then."""
    most, chosen = 0, 0
    for line in history:
        right = round(line["val_top1"] * num_val)
        most = max(most, right)
        if right > most - TOLD_APART:
            chosen = line["epoch"]
    return chosen


def best(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the highest val top1; of equals the lowest val loss, then the first."""
    return int(max(history, key=lambda line: (line["val_top1"], -line["val_loss"]))["epoch"])
