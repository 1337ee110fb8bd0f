"""Entries of the cache: folders of rows that were computed once, listed, limited and cleared together.

An entry is a folder named by the hash of everything that its rows depend on, except the image. In it lie
`about.json` (that everything), `rows.bin` (the rows, one after the other) and `index.bin` (one record
a row: the image's content hash, where the row lies, and a checksum of both). Rows are flushed before their
records are written, so a killed process leaves whole rows only; a row that does not match its
checksum is never used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout

from finetune.cache_dir import cache_folder
from finetune.errors import ResourceError
from finetune.settings import CacheSection
from finetune.types import NEVER, Event, OnEvent, StopSign
from finetune.whole import there_above, whole_file

ABOUT, LOCK = "about.json", "lock"
LAYOUT = 3  # goes up when rows of an older version must not be read
RECORD = np.dtype([("key", "V16"), ("offset", "<u8"), ("length", "<u4"), ("height", "<u4"), ("sum", "<u4")])
Record = np.void  # one of these
SILENCE = 1.0  # seconds of waiting for another process before that is said, and between looks at signals
LONGEST_WAIT = 3600.0


class CacheEntry:
    """One entry, open for reading and for adding rows; two processes take turns adding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.row_bytes: int | None = None  # where all rows have one length, as `hold` says
        self.rows_file, self.index_file = folder / "rows.bin", folder / "index.bin"
        self.lock = FileLock(folder / LOCK)
        self.about = (folder / ABOUT).read_text(encoding="utf-8", errors="replace")  # to begin anew with
        self.places: dict[bytes, int] = {}
        self.table = np.zeros(0, RECORD)  # longer than what is in use, so that it need not grow with every row
        self.num_records = self.end = 0
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self.places

    def find(self, digest: str) -> Record | None:
        """Return where the row of an image lies."""
        place = self.places.get(bytes.fromhex(digest))
        return None if place is None else self.table[place]

    @contextmanager
    def filling(self, what: str, *, on_event: OnEvent, stop: StopSign = NEVER) -> Iterator[None]:
        """Let no other process add rows or remove the entry inside the block; waits for one that does.

        That is reported once. An entry that was removed meanwhile starts again, without rows.

        Raises:
            ResourceError: the wait lasts an hour.
        """
        began, is_said = time.monotonic(), False
        while not self._locked():
            stop.raise_if_asked()
            if not is_said:
                on_event(Event.warning(f"waiting for another process that fills {what} ({self.folder})"))
                is_said = True
            if time.monotonic() - began > LONGEST_WAIT:
                raise ResourceError(
                    f"another process holds {self.lock.lock_file} for an hour",
                    hint="Check that process, or name another place: --set cache.folder=DIR.",
                )
        try:
            yield
        finally:
            self.lock.release()

    def _locked(self) -> bool:
        """Take the lock of the entry as it now is; return whether that succeeded within `SILENCE` seconds."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=SILENCE)
        except (Timeout, FileNotFoundError):
            return False
        if not (self.folder / LOCK).exists():  # what was locked has been removed
            self.lock.release()
            return False
        if not (self.folder / ABOUT).is_file():
            _begin(self.folder, self.about)
            self.refresh()
        self.touch()
        return True

    def hold(self, row_bytes: int) -> None:
        """Hold rows of one length; from a record of another length on, nothing counts."""
        self.row_bytes = row_bytes
        self.refresh()

    def refresh(self) -> None:
        """Read which rows are whole; none counts from half a record on, or from one that does not follow the last."""
        self.places.clear()
        self.num_records = self.end = 0
        if not self.index_file.is_file() or not self.rows_file.is_file():
            return
        content, size = self.index_file.read_bytes(), self.rows_file.stat().st_size
        records = np.frombuffer(content, RECORD, count=len(content) // RECORD.itemsize)
        lengths = records["length"].astype(np.int64)
        ends = np.cumsum(lengths)
        is_whole = (records["offset"] == ends - lengths) & (ends <= size)
        if self.row_bytes is not None:
            is_whole &= lengths == self.row_bytes
        self._note(records if is_whole.all() else records[: int(is_whole.argmin())])

    def add(self, digests: Sequence[str], rows: Sequence[np.ndarray], *, heights: Sequence[int] | None = None) -> None:
        """Append rows of bytes: the rows first, flushed, then their records.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        records = np.zeros(len(rows), RECORD)
        records["key"] = np.array([bytes.fromhex(digest) for digest in digests], "V16")
        records["length"] = [row.nbytes for row in rows]
        records["offset"] = self.end + np.cumsum(records["length"], dtype=np.int64) - records["length"]
        records["height"] = heights or 0
        records["sum"] = [checksum(row, record) for row, record in zip(rows, records, strict=True)]
        try:
            _write(self.rows_file, self.end, rows)
            _write(self.index_file, self.num_records * RECORD.itemsize, [records], is_flushed=False)
        except OSError as error:
            raise ResourceError(
                f"the cache {self.folder} cannot be written: {error.strerror}",
                hint="Free some disk (`finetune cache clear`), or name another place: --set cache.folder=DIR.",
            ) from error
        self._note(records)
        self.touch()

    def drop_damaged(self, digests: Iterable[str]) -> list[str]:
        """Forget the rows among `digests` whose bytes do not match their checksum, and return these."""
        content = self.mapped()
        damaged = []
        for digest in dict.fromkeys(digests):
            record = self.find(digest)
            if record is not None:
                start = int(record["offset"])
                if checksum(content[start : start + int(record["length"])], record) != record["sum"]:
                    damaged.append(digest)
        for digest in damaged:
            del self.places[bytes.fromhex(digest)]
        return damaged

    def mapped(self) -> np.ndarray:
        """Return the bytes of all rows, one after the other, as a memory map."""
        if not self.end:
            return np.empty(0, dtype=np.uint8)
        try:
            return np.memmap(self.rows_file, np.uint8, mode="r", shape=(self.end,))
        except (FileNotFoundError, ValueError):  # removed meanwhile: no row matches its checksum
            return np.empty(0, dtype=np.uint8)

    def _note(self, records: np.ndarray) -> None:
        count = self.num_records + len(records)
        if count > len(self.table):
            more = np.zeros(max(len(self.table), count - len(self.table)), RECORD)
            self.table = np.concatenate([self.table, more])
        self.table[self.num_records : count] = records
        for place, key in enumerate(records["key"], self.num_records):
            self.places[bytes(key)] = place
        self.num_records = count
        self.end = max(self.end, int((records["offset"] + records["length"]).max(initial=0)))

    def touch(self) -> None:
        """Note that the entry was used now: the least recently used go first."""
        with suppress(FileNotFoundError):  # removed by now
            os.utime(self.folder / ABOUT)


def checksum(row: np.ndarray, record: Record) -> int:
    """Return the checksum of a row's bytes and of its record (CRC-32: against damage, not forgery)."""
    return crc32(np.ascontiguousarray(row).data, crc32(record.tobytes()[: -RECORD["sum"].itemsize]))


def _write(file: Path, start: int, parts: Iterable[np.ndarray], *, is_flushed: bool = True) -> None:
    """Write parts from a byte on. Records need no flush: rows whose records are lost are computed again."""
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.seek(start)
        for part in parts:
            stream.write(np.ascontiguousarray(part).data)
        stream.truncate()
        if is_flushed:
            stream.flush()
            os.fsync(stream.fileno())


def open_entry(folder: Path, key: Mapping[str, Any]) -> CacheEntry:
    """Return the entry of a key, opened or begun.

    Raises:
        ResourceError: the folder cannot be written.
    """
    place = folder / entry_name(key)
    try:
        if not (place / ABOUT).is_file():
            _begin(place, _about(key))
        return CacheEntry(place)
    except OSError as error:
        raise ResourceError(
            f"the cache {place} cannot be written: {error.strerror}",
            hint="Name another place with --set cache.folder=DIR, or do without: --set cache.features=memory"
            " --set cache.pixels=none.",
        ) from error


def entry_with_room(key: Mapping[str, Any], settings: CacheSection, *, needed: int) -> CacheEntry | None:
    """Return the entry of a key for `needed` bytes of rows, opened or begun; None where they would not fit.

    Raises:
        ResourceError: the folder cannot be written.
    """
    folder, limit = entries_folder(settings.folder), int(settings.limit * 2**30)
    if not make_room(folder, needed=needed, limit=limit, keep=[entry_name(key)]):
        return None
    entry = open_entry(folder, key)
    entry.touch()
    return entry


def _begin(place: Path, about: str) -> None:
    with whole_file(place / ABOUT, is_shared=True) as beside:
        beside.write_text(about, encoding="utf-8")


def find_entry(folder: Path, key: Mapping[str, Any]) -> CacheEntry | None:
    """Return the entry of a key if there is one that can be read; none is begun."""
    place = folder / entry_name(key)
    try:
        return CacheEntry(place) if (place / ABOUT).is_file() else None
    except OSError:
        return None


def entry_name(key: Mapping[str, Any]) -> str:
    """Return the name of the folder in which the entry of a key lies."""
    return blake2b(_about(key).encode(), digest_size=16).hexdigest()


def _about(key: Mapping[str, Any]) -> str:
    return json.dumps({**key, "layout": LAYOUT}, sort_keys=True)


def entries_folder(setting: str = "auto") -> Path:
    """Return where entries lie: `cache.folder`, else the platform's cache place."""
    return (cache_folder() if setting == "auto" else Path(setting).expanduser()) / "entries"


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """What `finetune cache ls` shows of an entry."""

    name: str
    about: dict[str, Any]
    num_rows: int
    num_bytes: int
    used: float


def list_entries(folder: Path) -> list[EntryFacts]:
    """Return the entries of a cache, the least recently used first; none if it cannot be read."""
    entries, found = [], []
    with suppress(PermissionError):
        found = list(folder.glob(f"[!.]*/{ABOUT}"))
    for about in found:
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            sizes = {file.name: file.stat().st_size for file in about.parent.iterdir()}
        except (OSError, ValueError, RecursionError):
            content, sizes = {}, {}
        rows = sizes.get("index.bin", 0) // RECORD.itemsize
        content = content if isinstance(content, dict) else {}
        with suppress(FileNotFoundError):  # removed meanwhile
            entries.append(EntryFacts(about.parent.name, content, rows, sum(sizes.values()), about.stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.used)


def clear(folder: Path, names: Sequence[str] | None = None) -> int:
    """Remove entries (all of them without names) but those that are being filled; return how many bytes that freed."""
    chosen = [entry for entry in list_entries(folder) if names is None or entry.name in names]
    return sum(entry.num_bytes for entry in chosen if _removed(folder / entry.name))


def _removed(place: Path) -> bool:
    """Remove an entry that no process is filling, holding its lock to the last file; return whether it is gone."""
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    try:
        shutil.rmtree(place, ignore_errors=True)
    finally:
        lock.release()
    shutil.rmtree(place, ignore_errors=True)  # where a file that is open cannot be removed
    return not (place / ABOUT).exists()


def make_room(folder: Path, *, needed: int, limit: int, keep: Collection[str] = (), missing: int | None = None) -> bool:
    """Remove the least recently used entries until `needed` bytes of rows fit under the limit and on the disk.

    Entries in `keep` stay: the rows belong to them. `missing` is what is still to be written; by default, what
    these entries lack in size. Returns False, removing nothing, when the rows would never fit: they
    take more than the limit, or what is missing more than half of what the disk has free; or when other
    processes are filling what would have to go.
    """
    there = there_above(folder)
    entries = list_entries(folder)
    if missing is None:
        missing = max(0, needed - sum(entry.num_bytes for entry in entries if entry.name in keep))
    if needed > limit or missing > shutil.disk_usage(there).free // 2:
        return False
    excess = sum(entry.num_bytes for entry in entries) + missing - limit if missing else 0
    for entry in entries:
        if excess <= 0:
            break
        if entry.name not in keep:
            excess -= clear(folder, [entry.name])
    return excess <= 0
