"""How many images fit into a training step at once: from the memory a step takes (see `ledger`), or by trial.

What is not covered: workspaces of kernels, and what other processes take; `SHARE` leaves room for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from finetune.errors import ResourceError
from finetune.wording import amount

SHARE = 0.6  # of what is free


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training takes: a fixed part, and a part for each image of a batch."""

    fixed: int
    per_image: int

    def of(self, batch: int) -> int:
        """Return the bytes for a batch of this size."""
        return self.fixed + batch * self.per_image


def fitting_batch(wanted: int, memory: Memory, free: int) -> int:
    """Return how many of `wanted` images fit into a step at once: all of them, or a half, a quarter, ...

    Raises:
        ResourceError: not even one does.
    """
    size = wanted
    while size > 1 and memory.of(size) > SHARE * free:
        size = -(-size // 2)
    if memory.of(size) > free:
        raise ResourceError(
            f"one image in a training step takes {amount(memory.of(1))}, and {amount(free)} are free",
            hint="Train fewer layers (--strategy head-only), smaller images (--image-size) or a smaller backbone.",
        )
    return size


def tried_batch(wanted: int, attempt: Callable[[int], None]) -> int:
    """Return the largest of `wanted`, its half, its quarter, ... with which `attempt` does not run out of memory.

    Raises:
        ResourceError: it does with a single image.
    """
    size = wanted
    while True:
        try:
            with out_of_memory(size):
                attempt(size)
            return size
        except ResourceError:
            if size == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-size // 2)


@contextmanager
def out_of_memory(micro_batch: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors inside the block into ours, with the flag that helps.

    Raises:
        ResourceError: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        less = f"fewer images at once: --micro-batch {micro_batch // 2} (the result stays that of --batch-size), or "
        raise ResourceError(
            f"memory ran out with {micro_batch} images at once",
            hint=f"Use {less if micro_batch > 1 else ''}smaller images (--image-size), or fewer trained layers.",
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether one of torch's errors means that memory ran out; on a CPU it is a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    )
