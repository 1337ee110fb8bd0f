"""Freed memory stays with the process while it trains, and goes back afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
ROUNDS = """
import resource, torch
from finetune.heap import freed_memory_kept

def step():
    [torch.ones(10**7 + 10**5 * size) for size in range(6)]  # above 32 MiB malloc never keeps a block

def faults():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

alone = faults()
with freed_memory_kept():
    with freed_memory_kept():
        inner = faults()
    outer = faults()
print(alone, inner, outer)
"""


def rounds(**environment: str) -> tuple[int, ...]:
    """Return the pages that the kernel cleared for the tensors of five steps outside, and twice inside."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return tuple(map(int, done.stdout.split()))


def test_blocks_that_were_freed_are_used_again_inside() -> None:
    alone, inner, outer = rounds()
    assert inner < alone / 10 and outer < alone / 10


def test_an_own_setting_of_malloc_counts() -> None:
    alone, inner, outer = rounds(MALLOC_MMAP_THRESHOLD_="1000000")
    assert inner > alone / 2 and outer > alone / 2


def test_what_was_kept_is_given_back() -> None:
    before = _resident()
    with heap.freed_memory_kept():
        bytearray(2**27)
        kept = _resident()
    heap.give_back()
    assert kept - before > 2**26 and _resident() - before < 2**25


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


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE")
