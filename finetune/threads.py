"""How many CPU threads compute: all, or fewer if other work on the machine makes them wait for each other.

A layer is done when its last thread is. On cores that other processes use too, two threads wait many times longer for
each other than one takes alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from statistics import median

import torch
from torch.nn.functional import conv2d

ROUNDS = 3
WORTH = 1.5  # by this factor fewer threads must be faster


def fastest_threads() -> int:
    """Return the number of threads, up to torch's current one, with which this machine computes fastest right now.

    All of them, unless fewer are faster beyond doubt. Timed once in a process, in less than a second.
    """
    return _fastest(torch.get_num_threads())


@contextmanager
def threads_at(count: int) -> Iterator[None]:
    """Have torch compute with this number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _fastest(most: int) -> int:
    counts = sorted({most, most // 2, most // 4, 1} - {0}, reverse=True)
    if len(counts) == 1:
        return most
    rounds = [[_seconds(count) for count in counts] for _ in range(ROUNDS)]
    taken = {count: median(column) for count, column in zip(counts, zip(*rounds, strict=True), strict=True)}
    best = min(counts, key=lambda count: taken[count])
    return best if taken[most] > WORTH * taken[best] else most


def _seconds(count: int) -> float:
    """Return the seconds that a few small layers take, of sizes typical for a network."""
    images, kernel = torch.ones(4, 32, 28, 28), torch.ones(32, 32, 3, 3)
    with threads_at(count), torch.no_grad():
        conv2d(images, kernel)
        began = time.perf_counter()
        for _ in range(2):
            conv2d(images, kernel)
        return time.perf_counter() - began
