"""The layout of boundary tensors in rows of the cache, and the rows of a run that keeps them in memory.

Letters: B batch, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.cache_entries import CacheEntry
from finetune.types import OnEvent, StopSign

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of the boundary tensors of one image in a row."""

    shapes: tuple[tuple[int, ...], ...]
    precision: str

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @property
    def row_bytes(self) -> int:
        return sum(self.lengths) * torch.empty(0, dtype=DTYPES[self.precision]).element_size()

    def pack(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Return boundary tensors (B, ...) as rows of bytes (B, row_bytes)."""
        flat = torch.cat([tensor.detach().cpu().flatten(1) for tensor in tensors], dim=1)
        return flat.to(DTYPES[self.precision]).contiguous().view(torch.uint8).numpy()

    def unpack(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """Return rows of bytes as float32 boundary tensors."""
        flat = torch.from_numpy(rows).view(DTYPES[self.precision]).float()
        parts = torch.split(flat, list(self.lengths), dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))


class RowsOnDisk:
    """The rows of one entry of the cache, all of one size."""

    is_own = False  # other processes see them

    def __init__(self, entry: CacheEntry, layout: Layout) -> None:
        self.entry, self.layout = entry, layout
        entry.hold(layout.row_bytes)

    def filling(self, *, on_event: OnEvent, stop: StopSign) -> AbstractContextManager[None]:
        """Let no other process add rows inside the block."""
        return self.entry.filling("the feature cache", on_event=on_event, stop=stop)

    def __contains__(self, digest: str) -> bool:
        return digest in self.entry

    def refresh(self) -> None:
        """Read what other processes have added."""
        self.entry.refresh()

    def add(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """Append rows (B, row_bytes)."""
        self.entry.add(digests, list(rows))

    def drop_damaged(self, digests: Sequence[str]) -> list[str]:
        """Forget the rows that do not match their checksum, and return their digests."""
        return self.entry.drop_damaged(digests)

    def places(self, digests: Sequence[str]) -> np.ndarray:
        """Return which row of `mapped` each image has."""
        positions = [self.entry.places[bytes.fromhex(digest)] for digest in digests]
        return self.entry.table["offset"][positions] // self.layout.row_bytes

    def mapped(self) -> np.ndarray:
        """Return all rows as a memory map (N, row_bytes)."""
        return self.entry.mapped().reshape(-1, self.layout.row_bytes)

    def touch(self) -> None:
        """Note that they were used now."""
        self.entry.touch()


class RowsInMemory:
    """Rows that live as long as the run: if the disk is full, or on request."""

    is_own = True

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.order: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def filling(self, *, on_event: OnEvent, stop: StopSign) -> AbstractContextManager[None]:
        """Do nothing: no other process can see them."""
        return nullcontext()

    def __contains__(self, digest: str) -> bool:
        return digest in self.order

    def add(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """Append rows (B, row_bytes)."""
        for digest in digests:
            self.order[digest] = len(self.order)
        self.parts.append(rows)

    def places(self, digests: Sequence[str]) -> np.ndarray:
        """Return which row of `mapped` each image has."""
        return np.array([self.order[digest] for digest in digests])

    def mapped(self) -> np.ndarray:
        """Return all rows (N, row_bytes)."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, self.layout.row_bytes), dtype=np.uint8)

    def refresh(self) -> None:
        """Do nothing: no other process adds to them."""

    def touch(self) -> None:
        """Do nothing: they are as old as the run."""

    def drop_damaged(self, digests: Sequence[str]) -> list[str]:
        """Return nothing: memory is not checked."""
        return []
