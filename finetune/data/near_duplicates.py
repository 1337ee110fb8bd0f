"""Copies of one image: by bytes, by pixels, and near ones (saved again, resized, brightened, barely cropped).

Near copies are found in two steps. A hash of 63 bits says which pairs are worth a look: the signs of the
lowest frequencies of the small grey image. Each pair is then confirmed on the small images themselves,
because a hash of a blank or plain image says nothing. Letters: N images, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.images.thumbnails import SIDE, Looks

ALIKE = 0.98  # least correlation of two small grey images
TINT, TINT_SHARE = 16.0, 0.3  # levels, or share of their strength, by which colours of near copies may differ
PLAIN = 2.0  # deviation in levels of a small grey image below which its hash says nothing
RADIUS = 8  # bits by which the hashes of near copies may differ
FREQUENCIES = 8  # of 32, each way
PAIRS_AT_ONCE = 8192

How = Literal["bytes", "pixels", "near"]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Copies:
    """Images, by their place, that show one image; `how` is what the least alike of them share."""

    members: tuple[int, ...]
    how: How


def copies_of(looks: Looks, digests: Sequence[str], *, alike: float = ALIKE) -> list[Copies]:
    """Return the groups of images that show one image, in the order of their first members.

    Near copies of near copies are in one group. With `alike` = 1 only exact copies count.
    """
    first: dict[bytes, int] = {}
    same = [first.setdefault(bytes(pixels), place) for place, pixels in enumerate(looks["pixels"])]
    ties = _Ties(len(looks))
    ties.join(np.arange(len(looks)), np.array(same, dtype=np.int64))
    if alike < 1:
        chosen = np.array([place for place in first.values() if looks[place]["grey"].std() >= PLAIN], dtype=np.int64)
        for left, right in within(perceptual_hashes(looks["grey"][chosen]), radius=RADIUS):
            ties.join(*confirmed(looks, chosen[left], chosen[right], alike=alike))
    found = (members for members in ties.groups() if len(members) > 1)
    return [Copies(members, _how(members, same, digests)) for members in found]


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


def within(hashes: NDArray[np.uint64], *, radius: int) -> Iterator[Pairs]:
    """Yield every pair of places whose hashes (N,) differ by at most `radius` bits, each once, some at a time.

    Of radius + 1 parts of a hash such a pair shares at least one: only hashes that share a part are
    compared, so N^2 / 2^7 rather than N^2 comparisons for hashes that are spread out.
    """
    parts = [_part(number, radius + 1) for number in range(radius + 1)]
    for number, part in enumerate(parts):
        key = hashes & part
        order = np.argsort(key, kind="stable")
        ends = np.searchsorted(key[order], key[order], side="right")
        place, step = np.arange(len(hashes)), 0
        while len(place):
            step += 1
            place = place[place + step < ends[place]]
            left, right = order[place], order[place + step]
            differing = hashes[left] ^ hashes[right]
            is_near = np.bitwise_count(differing) <= radius
            for earlier in parts[:number]:  # it was found there
                is_near &= (differing & earlier) != 0
            if is_near.any():
                yield left[is_near], right[is_near]


def _part(number: int, count: int) -> np.uint64:
    """Return every count-th bit: neighbouring frequencies tell each other, and large groups take long."""
    return np.uint64(sum(1 << bit for bit in range(number, 64, count)))


def confirmed(looks: Looks, left: NDArray[np.int64], right: NDArray[np.int64], *, alike: float) -> Pairs:
    """Return those of the pairs (P,) whose small images agree, in grey and in colour.

    In grey by their correlation, which brightness and contrast do not change; in colour by the mean
    difference of red and blue from green, which more contrast makes stronger.
    """
    kept = []
    for start in range(0, len(left), PAIRS_AT_ONCE):
        here = slice(start, start + PAIRS_AT_ONCE)
        first, second = _standard(looks["grey"][left[here]]), _standard(looks["grey"][right[here]])
        is_alike = (first * second).mean(axis=1) >= alike
        one, other = _tint(looks["colour"][left[here]]), _tint(looks["colour"][right[here]])
        strength = np.maximum(np.abs(one).mean(axis=(1, 2)), np.abs(other).mean(axis=(1, 2)))
        is_alike &= np.abs(one - other).mean(axis=(1, 2)) <= np.maximum(TINT, TINT_SHARE * strength)
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
    """Return by how much red and blue (P, 64, 2) differ from green."""
    cells = colour.reshape(len(colour), -1, 3).astype(np.float32)
    difference: NDArray[np.float32] = cells[:, :, ::2] - cells[:, :, 1:2]
    return difference


def _how(members: Sequence[int], same: Sequence[int], digests: Sequence[str]) -> How:
    if len({digests[place] for place in members}) == 1:
        return "bytes"
    return "pixels" if len({same[place] for place in members}) == 1 else "near"


class _Ties:
    """Which places belong together, directly or through others."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        for first, second in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self._root(first), self._root(second)))
            self.parent[high] = low

    def groups(self) -> list[tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for place in range(len(self.parent)):
            found.setdefault(self._root(place), []).append(place)
        return [tuple(members) for members in found.values()]

    def _root(self, place: int) -> int:
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place
