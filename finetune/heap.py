"""Memory that is freed in training stays with the process: its next step asks for the same again.

By default glibc gives a large block back to the kernel as soon as it is freed. Each step then has every page of every
feature map cleared anew at its first use, which takes longer than most layers that write there.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h
NEVER, USUAL = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}, {TRIM_THRESHOLD: 2**26, MMAP_MAX: 2**16}  # what malloc grows to alone
_lock, _depth = threading.Lock(), 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the C library keep what is freed inside the block, in whichever thread, until no such block is left.

    Then it gives back what is freed next, and `give_back` the rest. Where a user has set glibc's malloc by environment
    variables, these count; other C libraries are left alone.
    """
    _enter(1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(step: int) -> None:
    global _depth
    with _lock:
        before, _depth = _depth, _depth + step
        libc = _glibc()
        if libc is not None and 0 in (before, _depth):
            for option, value in (NEVER if _depth else USUAL).items():
                libc.mallopt(option, value)


def give_back() -> None:
    """Give freed memory back to the system, so that what it has left can be counted."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """Return glibc if it is there and nobody has set its malloc."""
    is_set = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    )
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt, libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError):
        return None
    return None if is_set else libc
