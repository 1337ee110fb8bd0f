"""The scan: every image is hashed and fully decoded once, in parallel, before anything is trained.

What cannot be decoded is listed by name and left out; no file is ever touched. Results are kept by
path, size and time of change, so that the next run of the same data is quick; what the machine could not
do, for want of memory, rights or open files, is no result and is tried again.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from finetune.data.decode import UndecodableError, alone, decode, quiet, read_content
from finetune.data.pixels import PixelCache
from finetune.errors import DataError, ResourceError
from finetune.places import cache_folder
from finetune.types import Event, Manifest, OnEvent, Problem, Sample, ignore

SCAN_VERSION = 5  # goes up when `decode` begins to accept or refuse other files
CHUNK = 256
AT_ONCE = 32  # pictures are written together
LARGE_FILE = 2**26  # bytes; of larger ones a single one is in memory at a time
RECALL = "select digest, problem from scans where path=? and size=? and changed=? and version=?"


@dataclass(frozen=True, slots=True)
class Scan:
    """What one file is: the hash of its bytes, and why it is no usable image, if it is none."""

    digest: str
    problem: str = ""
    is_passing: bool = False  # the problem lies with the machine, and may be gone the next time


def scan(
    manifest: Manifest,
    *,
    workers: int | None = None,
    pixels: PixelCache | None = None,
    needs_all_classes: bool = True,
    on_event: OnEvent = ignore,
) -> Manifest:
    """Yield the manifest with a content hash for every sample and without what cannot be decoded.

    What is decoded fills the pixel cache, where there is one. Without `needs_all_classes` one may be left empty.

    Raises:
        DataError: no usable image is left in a class, or none at all.
    """
    files = [Path(manifest.root, sample.file) for sample in manifest.samples]
    with quiet():
        scans = list(scan_files(files, workers=workers, pixels=pixels, on_event=on_event))
    pairs = list(zip(manifest.samples, scans, strict=True))
    samples = tuple(replace(sample, digest=found.digest) for sample, found in pairs if not found.problem)
    bad = tuple(Problem(sample.file, found.problem) for sample, found in pairs if found.problem)
    scanned = replace(manifest, samples=samples, problems=manifest.problems + bad)
    _check_left(scanned, needs_all_classes)
    return replace(scanned, notes=manifest.notes + tuple(_conflicts(scanned)))


def scan_files(
    files: list[Path],
    *,
    workers: int | None = None,
    pixels: PixelCache | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[Scan]:
    """Yield what each file is, in order; another process that fills the same pixel cache is waited for."""
    filling = _Filling(pixels, on_event)
    on_event(Event("progress", {"task": "scan images", "done": 0, "total": len(files)}))
    with closing(_Memory()) as memory, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool, filling:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            stats = [_stamp(file) for file in chunk]
            known = memory.recall(stats)
            fresh = {stamp: file for file, stamp in zip(chunk, stats, strict=True) if filling.lacks(known.get(stamp))}
            found = pool.map(partial(_scan_one, side=filling.side), fresh.values())
            for stamp, (scan, picture) in zip(fresh, found, strict=True):
                known[stamp] = scan
                filling.add(scan.digest, picture)
            filling.flush()
            memory.remember({stamp: known[stamp] for stamp in fresh if not known[stamp].is_passing})
            yield from (known[stamp] for stamp in stats)
            on_event(Event("progress", {"task": "scan images", "done": start + len(chunk), "total": len(files)}))


def _scan_one(file: Path, *, side: int | None) -> tuple[Scan, Image.Image | None]:
    with alone(_stamp(file)[1] > LARGE_FILE):
        return _scanned(file, side)


def _scanned(file: Path, side: int | None) -> tuple[Scan, Image.Image | None]:
    try:
        content = read_content(file)
    except OSError as error:
        return Scan("", f"cannot be read: {error.strerror or error}", is_passing=True), None
    digest = blake2b(content, digest_size=16).hexdigest()
    try:
        picture = decode(content, side=side)
    except UndecodableError as error:
        return Scan(digest, error.message, is_passing=error.is_passing), None
    return Scan(digest), picture if side else None


class _Filling:
    """Pictures on their way into a pixel cache; when the disk is full the scan goes on without."""

    def __init__(self, pixels: PixelCache | None, on_event: OnEvent) -> None:
        self.pixels, self.on_event = pixels, on_event
        self.waiting: dict[str, Image.Image] = {}
        self.alone = ExitStack()

    @property
    def side(self) -> int | None:
        return self.pixels.side if self.pixels else None

    def __enter__(self) -> None:
        if self.pixels:
            try:
                self.alone.enter_context(self.pixels.entry.filling("the pixel cache", on_event=self.on_event))
                self.pixels.entry.refresh()
            except ResourceError as error:
                self._go_without(error.message)
            except OSError as error:
                self._go_without(error.strerror or str(error))

    def __exit__(self, *_: object) -> None:
        self.alone.close()

    def lacks(self, known: Scan | None) -> bool:
        """Tell whether a file must be opened: it is new, or its picture is not kept."""
        return known is None or (self.pixels is not None and not known.problem and known.digest not in self.pixels)

    def add(self, digest: str, picture: Image.Image | None) -> None:
        if picture is None or self.pixels is None or digest in self.pixels:
            return
        self.waiting[digest] = picture
        if len(self.waiting) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if not self.waiting or self.pixels is None:
            return
        try:
            self.pixels.add(list(self.waiting), list(self.waiting.values()))
        except ResourceError as error:
            self._go_without(error.message)
        self.waiting.clear()

    def _go_without(self, reason: str) -> None:
        self.alone.close()
        self.on_event(Event("warning", {"text": f"no pixel cache: {reason}"}))
        self.pixels = None


Stamp = tuple[str, int, int]


def _stamp(file: Path) -> Stamp:
    try:
        stat = file.stat()
    except OSError:
        return (str(file), -1, -1)
    return (str(file), stat.st_size, stat.st_mtime_ns)


class _Memory:
    """Earlier scans in a small database in the cache folder; without one that can be written, none."""

    def __init__(self) -> None:
        place = cache_folder() / "scans.sqlite"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(place, timeout=30)
            self._create()
        except (OSError, sqlite3.Error):
            self.database = sqlite3.connect(":memory:")
            self._create()

    def _create(self) -> None:
        self.database.execute(
            "create table if not exists scans (path blob, size integer, changed integer,"
            " version integer, digest text, problem text, primary key (path))"
        )

    def recall(self, stamps: Iterable[Stamp]) -> dict[Stamp, Scan]:
        found = {}
        try:
            for stamp in stamps:
                row = self.database.execute(RECALL, (*_row(stamp), SCAN_VERSION)).fetchone()
                if row and stamp[1] >= 0:
                    found[stamp] = Scan(*row)
        except sqlite3.Error:
            pass  # a damaged or locked file costs the memory, not the run
        return found

    def remember(self, scans: dict[Stamp, Scan]) -> None:
        rows = [(*_row(stamp), SCAN_VERSION, found.digest, found.problem) for stamp, found in scans.items()]
        try:
            with self.database:
                self.database.executemany("insert or replace into scans values (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            pass  # so does a full disk

    def close(self) -> None:
        self.database.close()


def _row(stamp: Stamp) -> tuple[bytes, int, int]:
    """Names are stored as bytes: not every one is UTF-8."""
    return (os.fsencode(stamp[0]), *stamp[1:])


def _check_left(manifest: Manifest, needs_all_classes: bool) -> None:
    if not manifest.samples:
        first = manifest.problems[0]
        raise DataError(
            f"none of the {len(manifest.problems)} images in {manifest.root} can be used;"
            f" the first: {first.file}: {first.reason}"
        )
    has_train = any(sample.split == "train" for sample in manifest.samples)
    pool = [s for s in manifest.samples if s.split in (None, "train") or not has_train]
    left = {sample.target.index for sample in pool}
    gone = [name for index, name in enumerate(manifest.classes) if index not in left]
    if gone and needs_all_classes:
        named = ", ".join(map(repr, gone))
        raise DataError(
            f"no usable image is left of {named}",
            hint="Their files are damaged or missing: " + "; ".join(p.file for p in manifest.problems[:5]),
        )


def _conflicts(manifest: Manifest) -> Iterator[str]:
    """Name pictures that stand in two classes."""
    labels: dict[str, set[int]] = {}
    first: dict[str, Sample] = {}
    for sample in manifest.samples:
        labels.setdefault(sample.digest, set()).add(sample.target.index)
        first.setdefault(sample.digest, sample)
    twice = [first[digest].file for digest, found in labels.items() if len(found) > 1]
    if twice:
        stand = "pictures stand" if len(twice) > 1 else "picture stands"
        yield f"{len(twice)} {stand} in two classes, e.g. {twice[0]}; `finetune check` lists all"
    copies = sum(count - 1 for count in Counter(s.digest for s in manifest.samples).values())
    if copies:
        yield f"{copies} images are exact copies of others; copies stay in one split"
