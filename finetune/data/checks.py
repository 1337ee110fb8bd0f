"""The scan: every image is hashed and fully decoded once, in parallel, before anything is trained.

What cannot be decoded is listed by name and left out; no file is ever touched. Results are kept by
path, size and time of change, so that the next run on the same data is quick; what failed for want of memory, rights
or open files is not kept and is tried again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from finetune import ranks
from finetune.bands import COLOURS, Bands
from finetune.data.scan_memory import Scan, ScanMemory, Stamp
from finetune.data.targets import with_copies_joined
from finetune.errors import DataError, ResourceError
from finetune.images.decode import UndecodableError, alone, examine
from finetune.images.depths import before_model, in_data
from finetune.images.files import read_content, stamp_of
from finetune.images.levels import Range, range_of, unfit
from finetune.images.pixels import PixelCache, PixelRow
from finetune.images.quiet import quiet
from finetune.images.remarks import remarks_of
from finetune.images.stores import StoreError, whole_place
from finetune.process import num_cores
from finetune.types import Event, Manifest, OnEvent, Problem, Sample, ignore

CHUNK = 256
AT_ONCE = 32  # images are written together
LARGE_FILE = 2**26  # bytes; only one larger file is in memory at a time


def scan(
    manifest: Manifest,
    *,
    workers: int | None = None,
    pixels: PixelCache | None = None,
    needs_all_classes: bool = True,
    value_range: Range | None = None,
    is_for_model: bool = False,
    on_event: OnEvent = ignore,
) -> Manifest:
    """Return the manifest with a content hash for every sample and without what cannot be decoded.

    What is decoded fills the pixel cache, where there is one. Several processes of a run each read a part. Without
    `needs_all_classes` a class may be left empty. `value_range` is what is black and white in deep images (over 8
    bits), measured if not given. With `is_for_model` it is the range of a finished model, which scales each deep image
    by itself if it has none.

    Raises:
        DataError: no usable image is left in a class, or none at all.
    """
    files = [Path(manifest.root, sample.file) for sample in manifest.samples]
    with quiet():
        scans = list(scan_files(files, workers=workers, pixels=pixels, bands=manifest.bands, on_event=on_event))
    judge = partial(_judged, needs_all_classes=needs_all_classes, value_range=value_range, is_for_model=is_for_model)
    return ranks.agreed(lambda: judge(manifest, scans))


def _judged(
    manifest: Manifest, scans: list[Scan], *, needs_all_classes: bool, value_range: Range | None, is_for_model: bool
) -> Manifest:
    """Return a manifest completed with what the scans of its images found."""
    pairs = list(zip(manifest.samples, scans, strict=True))
    if not is_for_model:
        pairs = _of_one_kind(pairs)
        deep = [scan.span for _, scan in pairs if scan.span and not scan.problem]
        value_range = (value_range or range_of(*deep)) if deep else None
    pairs = _fitting(pairs, value_range) if value_range else pairs
    samples = tuple(replace(sample, digest=scan.digest) for sample, scan in pairs if not scan.problem)
    bad = tuple(Problem(sample.file, scan.problem) for sample, scan in pairs if scan.problem)
    scanned = with_copies_joined(replace(manifest, samples=samples, problems=manifest.problems + bad))
    _check_left(scanned, needs_all_classes)
    spans = [scan.span for _, scan in pairs if not scan.problem]
    told = before_model(spans, value_range) if is_for_model else in_data(spans, value_range, manifest.bands)
    remarks = remarks_of((sample.file, scan.remark) for sample, scan in pairs)
    return replace(scanned, notes=(*scanned.notes, *remarks, *told), value_range=value_range)


def scan_files(
    files: list[Path],
    *,
    workers: int | None = None,
    pixels: PixelCache | None = None,
    bands: Bands = COLOURS,
    on_event: OnEvent = ignore,
) -> Iterator[Scan]:
    """Yield what each file is, in order; waits for another process that fills the same pixel cache.

    If a run has several processes, each opens one stretch of the files, so that a shard is read by one or two of them;
    the first keeps what all have found and yields it, the others yield nothing. What a process cannot read, perhaps
    because its machine does not see the disk, the first tries again.
    """
    count, rank = ranks.count(), ranks.rank()
    size, step = -(-len(files) // count), -(-CHUNK // count)
    own = files[rank * size : (rank + 1) * size]
    rest: list[list[Scan]] = [[] for _ in range(1, count)]
    filling = (_Sending if rank else _Filling)(pixels, on_event)
    on_event(Event.progress("scan images", 0, len(files)))
    with closing(ScanMemory(bands)) as memory, ThreadPoolExecutor(workers or num_cores()) as pool, filling:
        find = partial(_find, memory=memory, pool=pool, filling=filling, bands=bands)
        for start in range(0, size, step):
            if not ranks.agreed(lambda: filling.pixels is not None):
                filling.pixels = None  # the first has no room for them
            mine, *others = ranks.gathered(find(own[start : start + step])) or [_Found([], {}, [])]
            yield from mine.scans
            for other, part in enumerate(others, 1):
                filling.take(part.rows)
                memory.remember(part.fresh)
                chunk = files[other * size + start : other * size + start + step]
                missed = [place for place, scan in enumerate(part.scans) if scan.is_passing]
                again = dict(zip(missed, find([chunk[place] for place in missed]).scans, strict=True))
                rest[other - 1] += [again.get(place, scan) for place, scan in enumerate(part.scans)]
            on_event(Event.progress("scan images", min(len(files), count * (start + step)), len(files)))
        for scans in rest:
            yield from scans


@dataclass(slots=True)
class _Found:
    """What some files are, in order; which results to remember, and pixels for another process to keep."""

    scans: list[Scan]
    fresh: dict[Stamp, Scan]
    rows: list[tuple[Scan, PixelRow]]


def _find(files: list[Path], memory: ScanMemory, pool: ThreadPoolExecutor, filling: _Filling, bands: Bands) -> _Found:
    """Return what some files are, opening only those that are unknown or missing from the pixel cache."""
    stats = [_stamp(file) for file in files]
    known = memory.recall(stats)
    fresh = {stamp: file for file, stamp in zip(files, stats, strict=True) if filling.lacks(known.get(stamp))}
    scanned = pool.map(partial(_scan_one, pixels=filling.pixels, bands=bands), fresh.values())
    for stamp, (scan, row) in zip(fresh, scanned, strict=True):
        known[stamp] = scan
        filling.add(scan, row)
    filling.flush()
    lasting = {stamp: known[stamp] for stamp in fresh if not known[stamp].is_passing}
    memory.remember(lasting)
    return _Found([known[stamp] for stamp in stats], lasting, filling.sent())


def unchanged(manifest: Manifest) -> Manifest:
    """Return a manifest that keeps the digests only of images whose files have not changed since they were scanned.

    That is told by size and time of change; no file is opened.
    """
    stamps = [_stamp(Path(manifest.root, sample.file)) for sample in manifest.samples]
    with closing(ScanMemory(manifest.bands)) as memory:
        known = memory.recall(stamps)
    samples = tuple(
        sample if (scan := known.get(stamp)) and scan.digest == sample.digest else replace(sample, digest="")
        for sample, stamp in zip(manifest.samples, stamps, strict=True)
    )
    return replace(manifest, samples=samples)


def fill(manifest: Manifest, pixels: PixelCache | None, *, on_event: OnEvent = ignore) -> None:
    """Fill a pixel cache with what it lacks of a scanned manifest; of several processes of a run each reads a part."""
    if ranks.agreed(lambda: pixels is not None):
        with quiet():
            files = [Path(manifest.root, sample.file) for sample in manifest.samples]
            bands = pixels.preprocessing.bands if pixels else manifest.bands
            deque(scan_files(files, pixels=pixels, bands=bands, on_event=on_event), maxlen=0)


def _scan_one(file: Path, *, pixels: PixelCache | None, bands: Bands) -> tuple[Scan, PixelRow | None]:
    with alone(_stamp(file)[1] > LARGE_FILE):
        return _scanned(file, pixels, bands)


def _scanned(file: Path, pixels: PixelCache | None, bands: Bands) -> tuple[Scan, PixelRow | None]:
    try:
        content = read_content(file)
    except StoreError as error:
        text = f"{whole_place(file)}: cannot be read: {error.strerror}"
        raise DataError(text, hint="Nothing was left out. What was scanned is kept: try again later.") from error
    except OSError as error:
        return Scan("", f"cannot be read: {error.strerror or error}", is_passing=True), None
    digest = blake2b(content, digest_size=16).hexdigest()
    value_range = pixels.value_range if pixels else None
    try:
        make = pixels.row if pixels else lambda _: None
        decoded = examine(content, make, value_range=value_range, bands=bands)
    except UndecodableError as error:
        if value_range is not None:  # what does not fit one range may fit another: the file itself is fine
            return _scanned(file, None, bands)
        return Scan(digest, error.message, is_passing=error.is_passing), None
    return Scan(digest, span=decoded.span, remark=decoded.remark), decoded.content


class _Filling:
    """Images on their way into a pixel cache; when the disk is full the scan goes on without."""

    def __init__(self, pixels: PixelCache | None, on_event: OnEvent) -> None:
        self.pixels, self.on_event = pixels, on_event
        self.waiting: dict[str, PixelRow] = {}
        self.alone = ExitStack()

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
        """Return whether a file must be opened: it is new, or could be kept and is not."""
        return known is None or self._is_to_keep(known)

    def _is_to_keep(self, scan: Scan) -> bool:
        """Return whether an image can be kept and is not yet: a deep one only once black and white are known."""
        if self.pixels is None or scan.problem:
            return False
        return (scan.span is None or self.pixels.value_range is not None) and scan.digest not in self.pixels

    def add(self, scan: Scan, row: PixelRow | None) -> None:
        if row is None or not self._is_to_keep(scan):
            return
        self.waiting[scan.digest] = row
        if len(self.waiting) >= AT_ONCE:
            self.flush()

    def sent(self) -> list[tuple[Scan, PixelRow]]:
        """Return what was added for another process to keep."""
        return []

    def take(self, rows: list[tuple[Scan, PixelRow]]) -> None:
        """Keep what another process of the run has decoded."""
        for scan, row in rows:
            self.add(scan, row)
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
        self.on_event(Event.warning(f"no pixel cache: {reason}"))
        self.pixels = None


class _Sending(_Filling):
    """Images on their way to the first process of a run, which keeps them."""

    def __enter__(self) -> None:
        self.rows: list[tuple[Scan, PixelRow]] = []
        if self.pixels:
            self.pixels.entry.refresh()

    def add(self, scan: Scan, row: PixelRow | None) -> None:
        if row is not None and self._is_to_keep(scan):
            self.rows.append((scan, row))

    def sent(self) -> list[tuple[Scan, PixelRow]]:
        rows, self.rows = self.rows, []
        return rows


def _stamp(file: Path) -> Stamp:
    try:
        return (str(file), *stamp_of(file))
    except OSError:
        return (str(file), -1, -1)


def _check_left(manifest: Manifest, needs_all_classes: bool) -> None:
    if not manifest.samples:
        first = manifest.problems[0]
        raise DataError(
            f"none of the {len(manifest.problems)} images in {manifest.root} can be used;"
            f" the first: {first.file}: {first.reason}"
        )
    has_train = any(sample.split == "train" for sample in manifest.samples)
    pool = [s for s in manifest.samples if s.split in (None, "train") or not has_train]
    left = {index for sample in pool for index in sample.target.classes}
    gone = [name for index, name in enumerate(manifest.classes) if index not in left]
    if gone and needs_all_classes:
        named = ", ".join(map(repr, gone))
        raise DataError(
            f"no usable image is left in {named}",
            hint="Their files are damaged or missing: " + "; ".join(p.file for p in manifest.problems[:5]),
        )


def _fitting(pairs: list[tuple[Sample, Scan]], value_range: Range) -> list[tuple[Sample, Scan]]:
    """Return the pairs with a problem for each deep image that does not fit a range of values."""
    return [
        (sample, replace(scan, problem=scan.problem or (unfit(scan.span, value_range) if scan.span else "")))
        for sample, scan in pairs
    ]


def _of_one_kind(pairs: list[tuple[Sample, Scan]]) -> list[tuple[Sample, Scan]]:
    """Return the pairs with a problem for the rarer of floats and whole numbers of more than 8 bits.

    No one range fits both.
    """
    kinds = Counter(scan.span.is_real for _, scan in pairs if scan.span)
    if len(kinds) < 2:
        return pairs
    is_usual = kinds[True] > kinds[False]
    words = ("whole numbers of more than 8 bits", "floats")
    problem = (
        f"holds {words[not is_usual]}, and {kinds[is_usual]} other images {words[is_usual]}:"
        " no one range of values fits both; save all the same way"
    )
    return [
        (sample, replace(scan, problem=problem) if scan.span and scan.span.is_real != is_usual else scan)
        for sample, scan in pairs
    ]
