"""Taking a share of images that have several classes each, so that every class gives about its share.

Letters: N samples, U units, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.ties import Places


@dataclass(slots=True)
class LabelPool:
    """What can be taken for a split: units in the order in which they are drawn, with the classes in them.

    Source: Sechidis, Tsoumakas & Vlahavas 2011, On the stratification of multi-label data, ECML PKDD.
    """

    unit: Places  # (N,): places in the order of drawing
    inside: list[Counter[int]]  # of each unit (U,), how many images have which class
    sizes: Places  # (U,)
    is_there: NDArray[np.bool_]  # (U,): is not taken yet
    num_classes: int

    @staticmethod
    def of(labels: Sequence[tuple[int, ...]], unit: Places, num_classes: int) -> LabelPool:
        """Return the pool of images by their classes (N,) and units (N,)."""
        sizes = np.bincount(unit)
        inside: list[Counter[int]] = [Counter() for _ in sizes]
        for place, classes in zip(unit.tolist(), labels, strict=True):
            inside[place].update(classes)
        return LabelPool(unit, inside, sizes, np.ones(len(sizes), dtype=bool), num_classes)

    def take(self, *, share: float, keep: int) -> Places:
        """Return the places of samples, taken in units so that every class gives its share and keeps `keep` units.

        A class that would give nothing, because its share is small or its groups are large, gives its smallest.
        """
        before = self.is_there.copy()
        _Dealing(self, share, keep).run()
        return np.flatnonzero((before & ~self.is_there)[self.unit])


class _Dealing:
    """Units dealt to two sides, what is taken (1) and what stays (0): each to the side that lacks most of a class."""

    def __init__(self, pool: LabelPool, share: float, keep: int) -> None:
        self.pool, self.keep = pool, keep
        units = np.flatnonzero(pool.is_there).tolist()
        self.holders: list[list[int]] = [[] for _ in range(pool.num_classes)]
        counts = np.zeros(pool.num_classes)
        for unit in units:
            for label, count in pool.inside[unit].items():
                self.holders[label].append(unit)
                counts[label] += count
        self.left = np.array([len(holders) for holders in self.holders])  # units of each class that are not taken
        self.lacking = np.stack([(1 - share) * counts, share * counts])  # (2, K) images
        self.room = np.array([1 - share, share]) * pool.sizes[units].sum()  # (2,) images
        self.undealt = set(units)

    def run(self) -> None:
        """Deal the units of the rarest class first, then those without a class; then mend what gave nothing."""
        undealt = self.left.astype(float)
        while (undealt > 0).any():
            rarest = int(np.where(undealt > 0, undealt, np.inf).argmin())
            for unit in self.holders[rarest]:
                if unit in self.undealt:
                    self._deal(unit, rarest)
                    undealt[list(self.pool.inside[unit])] -= 1
        for unit in sorted(self.undealt):
            self._deal(unit, None)
        self._mend()

    def _deal(self, unit: int, label: int | None) -> None:
        self.undealt.remove(unit)
        by_label = 0.0 if label is None else self.lacking[1, label] - self.lacking[0, label]
        wants = by_label > 0 or (by_label == 0 and self.room[1] > self.room[0])
        is_taken = bool(wants and self._is_spared(unit))
        if is_taken:
            self._take(unit)
        for other, count in self.pool.inside[unit].items():
            self.lacking[int(is_taken), other] -= count
        self.room[int(is_taken)] -= self.pool.sizes[unit]

    def _is_spared(self, unit: int) -> bool:
        return all(self.left[label] > self.keep for label in self.pool.inside[unit])

    def _take(self, unit: int) -> None:
        self.pool.is_there[unit] = False
        self.left[list(self.pool.inside[unit])] -= 1

    def _mend(self) -> None:
        """Take the smallest unit that can be spared of each class that gave none."""
        for label in np.argsort(self.left, kind="stable").tolist():
            holders = self.holders[label]
            if holders and self.left[label] == len(holders):
                spared = [unit for unit in holders if self._is_spared(unit)]
                if spared:
                    self._take(min(reversed(spared), key=lambda unit: int(self.pool.sizes[unit])))
