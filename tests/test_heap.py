"""Freed memory stays with the process while it trains, and goes back afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from finetune import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
ROUNDS = """
import resource, torch
from finetune.heap import freed_memory_kept, give_back

def step():
    [torch.ones(10**7 + 10**5 * size) for size in range(6)]  # above 32 MiB malloc never keeps a block

def faults():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

alone = faults()
before = resident()
with freed_memory_kept():
    with freed_memory_kept():
        inner = faults()
    outer = faults()
    kept = resident() - before
give_back()
print(alone, inner, outer, kept, resident() - before)
"""


def rounds(**environment: str) -> tuple[int, ...]:
    """Return the pages that five steps had cleared outside, and twice inside, and the bytes that were kept and left."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return tuple(map(int, done.stdout.split()))


def test_blocks_that_were_freed_are_used_again_inside_and_then_given_back() -> None:
    alone, inner, outer, kept, left = rounds()
    assert inner < alone / 10 and outer < alone / 10
    assert kept > 2**27 and left < 2**25


def test_an_own_setting_of_malloc_counts() -> None:
    alone, inner, outer, *_ = rounds(MALLOC_MMAP_THRESHOLD_="1000000")
    assert inner > alone / 2 and outer > alone / 2


def test_memory_is_kept_as_long_as_any_thread_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(heap, "_glibc", lambda: SimpleNamespace(mallopt=lambda *pair: told.append(pair)))
    first, second = heap.freed_memory_kept(), heap.freed_memory_kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert dict(told) == heap.NEVER
    second.__exit__(None, None, None)
    assert dict(told) == heap.USUAL
