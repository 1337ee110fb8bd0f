"""Copies of one image: by bytes, by pixels, and near ones (saved again, resized, brightened, barely cropped).

Near copies are found in two steps. A hash of 63 bits says which pairs are worth a look: the signs of the
lowest frequencies of the small grey image. Each pair is then confirmed on the small images themselves,
because a hash of a blank or plain image says nothing. The groups are those that comparing every pair would give; but
pairs already in one group are not compared, so that frames of a fixed camera, which are all alike, take little more
time than other images. Letters: N images, P pairs, C images of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.data.ties import Places, Ties
from finetune.images.thumbnails import SIDE, Looks

ALIKE = 0.98  # least correlation of two small grey images
TINT, TINT_SHARE = 16.0, 0.3  # levels, or share of their strength, by which colours of near copies may differ
PLAIN = 2.0  # deviation in levels of a small grey image below which its hash says nothing
RADIUS = 8  # bits by which the hashes of near copies may differ
FREQUENCIES = 8  # lowest of 32, in each direction
PAIRS_AT_ONCE = 8192
TILE = 1024  # images that are compared, each with each of as many others, at once
FEW = 2048  # pairs of a tile that are confirmed one by one sooner than sifted
MARGIN = 1e-3  # more than rounding can move a correlation or a colour by
REPRESENTATIVES = 16  # images of a cell that all others are compared with first
WORTHWHILE = 0.1  # least share of the others that a representative's group takes in, for there to be another

How = Literal["bytes", "pixels", "near"]
Pairs = tuple[Places, Places]


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of one image, by index; `how` is what the least similar of them share."""

    members: tuple[int, ...]
    how: How


def copies_of(looks: Looks, digests: Sequence[str], *, alike: float = ALIKE) -> list[Copies]:
    """Return the groups of copies, in the order of their first members.

    Near copies of near copies are in one group. With `alike` = 1 only exact copies count.
    """
    ties = Ties(len(looks))
    ties.join_alike([bytes(pixels) for pixels in looks["pixels"]])
    same = ties.numbers().tolist()
    if alike < 1:
        first = np.unique(same, return_index=True)[1]
        _Search(looks, _telling(looks, first), ties, alike).run()
    return [Copies(members, _how(members, same, digests)) for members in ties.groups() if len(members) > 1]


def _telling(looks: Looks, places: Places) -> Places:
    """Return the places whose images are not plain."""
    parts = np.split(places, range(PAIRS_AT_ONCE, len(places), PAIRS_AT_ONCE))
    return np.concatenate([part[looks["grey"][part].std(axis=(1, 2)) >= PLAIN] for part in parts])


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for near copies among some of the places."""

    looks: Looks
    places: Places  # (N,)
    ties: Ties
    alike: float

    def run(self) -> None:
        """Tie all near copies."""
        parts = np.split(self.places, range(PAIRS_AT_ONCE, len(self.places), PAIRS_AT_ONCE))
        hashes = np.concatenate([perceptual_hashes(self.looks["grey"][part]) for part in parts])
        for cell, seen in cells(hashes, radius=RADIUS):
            self._tie_to_representatives(hashes, cell)
            cell = cell[np.argsort(self.ties.roots(self.places[cell]), kind="stable")]
            tiles = np.split(cell, range(TILE, len(cell), TILE))
            for number, rows in enumerate(tiles):
                for columns in tiles[number:]:
                    self._tie(hashes, rows, columns, seen)

    def _tie_to_representatives(self, hashes: NDArray[np.uint64], cell: Places) -> None:
        """Compare all others with one image, those that are unlike it with another, and so on while that pays off."""
        left = cell
        for _ in range(REPRESENTATIVES):
            representative, others = left[0], left[self._apart(left[:1], left)[0]]
            is_near = np.bitwise_count(hashes[others] ^ hashes[representative]) <= RADIUS
            self._confirm(np.full(is_near.sum(), representative), others[is_near])
            left = others[self._apart(left[:1], others)[0]]
            if len(left) < 2 or len(left) > (1 - WORTHWHILE) * len(others):
                break

    def _tie(self, hashes: NDArray[np.uint64], rows: Places, columns: Places, seen: Sequence[np.uint64]) -> None:
        """Compare each of the rows with each of the columns, except for pairs that are tied or were seen."""
        is_asked = self._apart(rows, columns)
        if not is_asked.any():
            return
        differing = hashes[rows][:, None] ^ hashes[columns]
        is_asked &= np.bitwise_count(differing) <= RADIUS
        if rows is columns:
            is_asked = np.triu(is_asked, 1)
        left, right = np.nonzero(is_asked)
        for part in seen:
            is_new = (differing[left, right] & part) != 0
            left, right = left[is_new], right[is_new]
        if len(left) > FEW:
            is_likely = self._sifted(rows, columns)[left, right]
            left, right = left[is_likely], right[is_likely]
        for start in range(0, len(left), PAIRS_AT_ONCE):
            here = slice(start, start + PAIRS_AT_ONCE)
            self._confirm(rows[left[here]], columns[right[here]])

    def _sifted(self, rows: Places, columns: Places) -> NDArray[np.bool_]:
        """Return which pairs may be alike, for all at once: by one product of matrices, and by their mean colours."""
        row_looks, column_looks = self.looks[self.places[rows]], self.looks[self.places[columns]]
        first, second = _standard(row_looks["grey"]), _standard(column_looks["grey"])
        may_be = first @ second.T / first.shape[1] >= self.alike - MARGIN
        tints, others = _tint(row_looks["colour"]), _tint(column_looks["colour"])
        strength = np.maximum(_strength(tints)[:, None], _strength(others))
        apart = np.abs(tints.mean(axis=1)[:, None] - others.mean(axis=1)).mean(
            axis=2
        )  # at most what the single cells differ by
        is_sifted: NDArray[np.bool_] = may_be & (apart <= np.maximum(TINT, TINT_SHARE * strength) + MARGIN * TINT)
        return is_sifted

    def _apart(self, rows: Places, columns: Places) -> NDArray[np.bool_]:
        """Return for each row and column whether the two are not tied yet."""
        is_apart: NDArray[np.bool_] = self.ties.roots(self.places[rows])[:, None] != self.ties.roots(
            self.places[columns]
        )
        return is_apart

    def _confirm(self, left: Places, right: Places) -> None:
        """Tie those pairs that are alike."""
        left, right = self.places[left], self.places[right]
        is_apart = self.ties.roots(left) != self.ties.roots(right)
        self.ties.join(*confirmed(self.looks, left[is_apart], right[is_apart], alike=self.alike))


def perceptual_hashes(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a hash (N,) of each small grey image (N, 32, 32): is a low frequency above their median?

    The frequencies are those of the discrete cosine transform, the mean left out.
    """
    places = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * places + 1) * places[:FREQUENCIES, None] / (2 * SIDE))  # (8, 32)
    low = (waves @ grey.astype(np.float64) @ waves.T).reshape(len(grey), FREQUENCIES**2)[:, 1:]  # (N, 63)
    bits = low > np.median(low, axis=1, keepdims=True)
    weights = np.uint64(1) << np.arange(bits.shape[1], dtype=np.uint64)
    hashes: NDArray[np.uint64] = np.where(bits, weights, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return hashes


def cells(hashes: NDArray[np.uint64], *, radius: int) -> list[tuple[Places, Sequence[np.uint64]]]:
    """Return sets of places; any two hashes (N,) that differ by at most `radius` bits share at least one set.

    Such a pair shares at least one of the radius + 1 parts of a hash: so a set holds the hashes that share a part,
    N^2 / 2^7 pairs rather than N^2 for hashes that are spread out. With each set come the parts that pairs of an
    earlier set share. Where hashes are so alike that this were more pairs than all, all places are one set.
    """
    parts = [_part(number, radius + 1) for number in range(radius + 1)]
    sets: list[tuple[Places, Sequence[np.uint64]]] = []
    for number, part in enumerate(parts):
        key = hashes & part
        order = np.argsort(key, kind="stable")
        ends = np.flatnonzero(np.diff(key[order])) + 1
        sets += [(places, parts[:number]) for places in np.split(order, ends) if len(places) > 1]
    if sum(len(places) ** 2 for places, _ in sets) > len(hashes) ** 2:
        return [(np.arange(len(hashes)), ())]
    return sets


def _part(number: int, count: int) -> np.uint64:
    """Return every count-th bit: neighbouring frequencies are correlated, and large groups take long."""
    return np.uint64(sum(1 << bit for bit in range(number, 64, count)))


def confirmed(looks: Looks, left: NDArray[np.int64], right: NDArray[np.int64], *, alike: float) -> Pairs:
    """Return the pairs (P,) whose small images agree, in grey and in colour.

    In grey by their correlation, which brightness and contrast do not change; in colour by the mean
    difference of red and blue from green, which more contrast makes stronger.
    """
    kept = []
    for start in range(0, len(left), PAIRS_AT_ONCE):
        here = slice(start, start + PAIRS_AT_ONCE)
        first, second = _standard(looks["grey"][left[here]]), _standard(looks["grey"][right[here]])
        is_alike = (first * second).mean(axis=1) >= alike
        left_tint, right_tint = _tint(looks["colour"][left[here]]), _tint(looks["colour"][right[here]])
        strength = np.maximum(_strength(left_tint), _strength(right_tint))
        is_alike &= np.abs(left_tint - right_tint).mean(axis=(1, 2)) <= np.maximum(TINT, TINT_SHARE * strength)
        kept.append(is_alike)
    is_kept = np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
    return left[is_kept], right[is_kept]


def _standard(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return small images (P, 1024) with mean 0 and deviation 1; blank ones as they are."""
    flat = grey.reshape(len(grey), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = flat / np.maximum(flat.std(axis=1, keepdims=True), 1e-6)
    return scaled


def _tint(colour: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how much red and blue (P, 64, 2) differ from green."""
    cells = colour.reshape(len(colour), -1, 3).astype(np.float32)
    difference: NDArray[np.float32] = cells[:, :, ::2] - cells[:, :, 1:2]
    return difference


def _strength(tint: NDArray[np.float32]) -> NDArray[np.float32]:
    strength: NDArray[np.float32] = np.abs(tint).mean(axis=(1, 2))
    return strength


def _how(members: Sequence[int], same: Sequence[int], digests: Sequence[str]) -> How:
    if len({digests[place] for place in members}) == 1:
        return "bytes"
    return "pixels" if len({same[place] for place in members}) == 1 else "near"
