"""The feature cache: what a trunk yields for each image, kept for later epochs, phases, trials and runs.

An entry is a folder named by the hash of everything that the values depend on but the image: weights
and arguments of the trunk, boundary, preprocessing, view, precision, device kind, threads, versions.
In it lie `rows.bin`, one row of fixed size an image, and `index.bin`, one record a row: the image's
content hash and the row's own. Rows are flushed before their records are written, so a killed run
leaves whole rows only; a row whose hash does not match is computed again.

Letters: N images.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from finetune.errors import ResourceError
from finetune.places import cache_folder

LAYOUT = 1  # goes up when rows of an older version must not be read
RECORD = 32  # bytes: 16 of the image's content hash, 16 of the row's
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the boundary tensors of one image lie in a row."""

    shapes: tuple[tuple[int, ...], ...]
    precision: str

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @property
    def row_bytes(self) -> int:
        return sum(self.lengths) * torch.empty(0, dtype=DTYPES[self.precision]).element_size()

    def pack(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Yield boundary tensors (B, ...) as rows of bytes (B, row_bytes)."""
        flat = torch.cat([tensor.detach().cpu().flatten(1) for tensor in tensors], dim=1)
        return flat.to(DTYPES[self.precision]).contiguous().view(torch.uint8).numpy()

    def unpack(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """Yield rows of bytes as float32 boundary tensors."""
        flat = torch.from_numpy(rows).view(DTYPES[self.precision]).float()
        parts = torch.split(flat, list(self.lengths), dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))


class Entry:
    """One entry of the cache, open for reading and for adding rows; two processes take turns adding."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.rows_file, self.index_file = folder / "rows.bin", folder / "index.bin"
        self.lock = FileLock(folder / "lock")
        self.places: dict[str, int] = {}
        self.sums: list[bytes] = []
        self.refresh()

    def refresh(self) -> None:
        """Read which rows are whole; a record without its row, or half a record, does not count."""
        self.places.clear()
        self.sums.clear()
        if not self.index_file.is_file() or not self.rows_file.is_file():
            return
        records = self.index_file.read_bytes()
        count = min(len(records) // RECORD, self.rows_file.stat().st_size // self.layout.row_bytes)
        for place in range(count):
            record = records[place * RECORD : (place + 1) * RECORD]
            self.places[record[:16].hex()] = place
            self.sums.append(record[16:])

    def add(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """Append rows (B, row_bytes): the rows first, flushed, then their records."""
        count = len(self.sums)
        with self.rows_file.open("r+b" if self.rows_file.exists() else "w+b") as stream:
            stream.seek(count * self.layout.row_bytes)
            stream.write(rows.tobytes())
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        sums = [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        with self.index_file.open("r+b" if self.index_file.exists() else "w+b") as stream:
            stream.seek(count * RECORD)
            stream.write(b"".join(bytes.fromhex(digest) + total for digest, total in zip(digests, sums, strict=True)))
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        for digest, total in zip(digests, sums, strict=True):
            self.places[digest] = len(self.sums)
            self.sums.append(total)

    def drop_damaged(self, digests: Sequence[str]) -> list[str]:
        """Forget the rows among `digests` whose bytes do not match their hash, and yield these."""
        rows = self.mapped()
        damaged = [
            digest
            for digest in dict.fromkeys(digests)
            if digest in self.places
            and blake2b(rows[self.places[digest]].tobytes(), digest_size=16).digest() != self.sums[self.places[digest]]
        ]
        for digest in damaged:
            del self.places[digest]
        return damaged

    def mapped(self) -> np.ndarray:
        """Yield all rows as a memory map (N, row_bytes)."""
        if not self.sums:
            return np.empty((0, self.layout.row_bytes), dtype=np.uint8)
        return np.memmap(self.rows_file, np.uint8, mode="r", shape=(len(self.sums), self.layout.row_bytes))

    def touch(self) -> None:
        """Note that the entry was used now: the least recently used go first."""
        os.utime(self.folder / "about.json", (time.time(), time.time()))


class _NoLock:
    """Stands where a lock stands, for what no other process can see."""

    def acquire(self, timeout: float) -> AbstractContextManager[None]:
        return nullcontext()


class MemoryEntry:
    """An entry that lives as long as the run: where the disk is full, or asked for."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.lock = _NoLock()
        self.places: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def add(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """Append rows (B, row_bytes)."""
        for digest in digests:
            self.places[digest] = len(self.places)
        self.parts.append(rows)

    def mapped(self) -> np.ndarray:
        """Yield all rows (N, row_bytes)."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, self.layout.row_bytes), dtype=np.uint8)

    def refresh(self) -> None:
        """Nobody else adds to it."""

    def touch(self) -> None:
        """It is as old as the run."""

    def drop_damaged(self, digests: Sequence[str]) -> list[str]:
        """Memory is not checked."""
        return []


def open_entry(folder: Path, key: Mapping[str, Any], layout: Layout) -> Entry:
    """Open the entry of a key, or begin it.

    Raises:
        ResourceError: the folder cannot be written.
    """
    place, text = folder / entry_name(key, layout), _about(key, layout)
    try:
        place.mkdir(parents=True, exist_ok=True)
        about = place / "about.json"
        if not about.is_file():
            beside = place / f".about.{os.getpid()}"
            beside.write_text(text, encoding="utf-8")
            beside.replace(about)
        return Entry(place, layout)
    except OSError as error:
        raise ResourceError(
            f"the feature cache {place} cannot be written: {error.strerror}",
            hint="Name another place with --set cache.folder=DIR, or go without: --set cache.features=memory.",
        ) from error


def entry_name(key: Mapping[str, Any], layout: Layout) -> str:
    """Yield the name of the folder in which the entry of a key lies."""
    return blake2b(_about(key, layout).encode(), digest_size=16).hexdigest()


def _about(key: Mapping[str, Any], layout: Layout) -> str:
    facts = {**key, "layout": LAYOUT, "shapes": layout.shapes, "precision": layout.precision}
    return json.dumps(facts, sort_keys=True)


def features_folder(setting: str = "auto") -> Path:
    """Yield where entries lie: `cache.folder`, else the platform's cache place."""
    return (cache_folder() if setting == "auto" else Path(setting).expanduser()) / "features"


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """What `finetune cache ls` shows of an entry."""

    name: str
    about: dict[str, Any]
    num_rows: int
    num_bytes: int
    used: float


def list_entries(folder: Path) -> list[EntryFacts]:
    """Yield the entries of a cache, the least recently used first."""
    found = []
    for about in folder.glob("*/about.json"):
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            sizes = {file.name: file.stat().st_size for file in about.parent.iterdir()}
        except (OSError, ValueError):
            content, sizes = {}, {}
        rows = sizes.get("index.bin", 0) // RECORD
        found.append(EntryFacts(about.parent.name, content, rows, sum(sizes.values()), about.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def clear(folder: Path, names: Sequence[str] | None = None) -> int:
    """Remove entries (all of them without names) and yield how many bytes that freed."""
    freed = 0
    for entry in list_entries(folder):
        if names is None or entry.name in names:
            shutil.rmtree(folder / entry.name, ignore_errors=True)
            freed += entry.num_bytes
    return freed


def make_room(folder: Path, *, needed: int, limit: int, keep: str) -> bool:
    """Remove least recently used entries until `needed` more bytes fit under the limit and on the disk.

    Yields False, removing nothing, when they never would: more than the limit, or than half of what
    the disk has free.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if needed > limit or needed > shutil.disk_usage(there).free // 2:
        return False
    entries = [entry for entry in list_entries(folder) if entry.name != keep]
    excess = sum(entry.num_bytes for entry in entries) + needed - limit
    for entry in entries:
        if excess <= 0:
            break
        excess -= clear(folder, [entry.name])
    return True
