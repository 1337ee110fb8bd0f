"""Random numbers that depend on where they are used and on nothing that was drawn before.

Every random choice derives from (seed, phase, epoch, step) or (seed, epoch, image), inside a forked
generator. So a resumed run draws what the uninterrupted one would have drawn, with any number of
workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray


def derive(seed: int, *place: object) -> int:
    """Return a 63-bit seed for one place, e.g. `derive(0, "order", phase, epoch)`."""
    text = repr((seed, *place)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def derive_each(seed: int, place: str, names: Iterable[str]) -> NDArray[np.uint64]:
    """Return `derive(seed, place, name)` of each name (N,), in less time."""
    start, end = f"({seed!r}, {place!r}, ", ")"  # as `repr` has it
    digests = b"".join([blake2b(f"{start}{name!r}{end}".encode(), digest_size=8).digest() for name in names])
    return np.frombuffer(digests, ">u8").astype(np.uint64) >> np.uint64(1)


@dataclass(frozen=True, slots=True)
class Resamples:
    """Bootstrap samples of `count` images, one after the other and the same each time: how often each (N,) is drawn.

    Whole units (copies, groups) are drawn, since their images are not independent; without `units` each image is one.
    """

    count: int
    units: Sequence[int] | None
    draws: int
    seed: int

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        unit = None if self.units is None else np.unique(np.asarray(self.units), return_inverse=True)[1]
        num_units = self.count if unit is None else int(unit.max()) + 1
        generator = np.random.default_rng(self.seed)
        for _ in range(self.draws):
            drawn = np.bincount(generator.integers(0, num_units, num_units), minlength=num_units)
            yield drawn if unit is None else drawn[unit]


def resampled(count: int, units: Sequence[int] | None, *, draws: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image is in each bootstrap sample (draws, count): see `Resamples`."""
    return np.stack(list(Resamples(count, units, draws, seed)))


@contextmanager
def forked(seed: int, *, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Seed Python, NumPy and torch inside the block and put back what they were after it."""
    states = random.getstate(), np.random.get_state()
    cuda = [device for device in devices if device.type == "cuda"]
    on_mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None
    with torch.random.fork_rng(devices=cuda):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if on_mps is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            if on_mps is not None:
                torch.mps.set_rng_state(on_mps)
