"""Sets of places that belong together, directly or through others. Letters: N places, P pairs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Ties:
    """A union-find over places; the root of a place is the first of its set."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count)  # (N,): never a later place

    def roots(self, places: Places) -> Places:
        """Return the root of each place."""
        roots: Places = self.parent[places]
        while not np.array_equal(roots, above := self.parent[roots]):
            roots = above
        self.parent[places] = roots
        return roots

    def join(self, left: Places, right: Places) -> None:
        """Join each place on the left (P,) with its partner on the right (P,).

        All at once: every root is attached to the least that it is paired with, until both of each pair share one.
        """
        while True:
            left, right = self.roots(left), self.roots(right)
            is_apart = left != right
            if not is_apart.any():
                return
            left, right = left[is_apart], right[is_apart]
            np.minimum.at(self.parent, np.maximum(left, right), np.minimum(left, right))
            hung = np.concatenate([left, right])
            while not np.array_equal(self.parent[hung], above := self.parent[self.parent[hung]]):
                self.parent[hung] = above

    def join_alike(self, keys: Sequence[Hashable]) -> None:
        """Join the places with equal keys (one key per place); an empty key equals none."""
        named = [key for key in keys if key]
        if len(set(named)) == len(named):
            return
        first: dict[Hashable, int] = {}
        same = [first.setdefault(key, place) if key else place for place, key in enumerate(keys)]
        self.join(np.arange(len(same)), np.array(same, dtype=np.int64))

    def numbers(self) -> Places:
        """Return the number of each place's set (N,), in order of appearance."""
        roots = self.roots(np.arange(len(self.parent)))
        return np.unique(roots, return_inverse=True)[1]

    def groups(self) -> list[tuple[int, ...]]:
        """Return the places of each set, in the order of their first ones."""
        numbers = self.numbers()
        order = np.argsort(numbers, kind="stable")
        ends = np.flatnonzero(np.diff(numbers[order])) + 1
        return [tuple(members.tolist()) for members in np.split(order, ends)]
