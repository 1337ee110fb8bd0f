"""A small summary of each image: its size and format, the hash of its pixels, and images of 32 and 8 pixels.

Everything about copies is told from these, never from the files again. They are kept by content in the
cache, about a kilobyte per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from finetune.bands import COLOURS, Bands
from finetune.cache_entries import CacheEntry, entry_with_room
from finetune.errors import DataError, ResourceError
from finetune.images.decode import DECODE_VERSION, UndecodableError, decode, examine
from finetune.images.files import FORMS, form_of, read_content
from finetune.images.levels import Range
from finetune.images.quiet import quiet
from finetune.images.stacks import Stack
from finetune.images.stores import whole_place
from finetune.process import num_cores
from finetune.settings import CacheSection
from finetune.types import Event, Manifest, OnEvent, Sample, ignore

LOOKS_VERSION = 3  # goes up when the same image begins to give another row
SIDE, COARSE = 32, 8  # pixels of the small grey image and of the smaller one in colour
CHUNK = 256
SAME_GREY = 3  # levels that channels of a grey image may differ by, after a lossy format
LOOK = np.dtype(
    [
        ("height", "<u4"),
        ("width", "<u4"),
        ("format", "u1"),  # index in FORMS
        ("is_grey", "u1"),
        ("contrast", "<f4"),  # deviation of the grey values of the whole image, in levels
        ("pixels", "V16"),  # hash of size and RGB values
        ("grey", "u1", (SIDE, SIDE)),
        ("colour", "u1", (COARSE, COARSE, 3)),
    ]
)
Looks = NDArray[np.void]  # of dtype LOOK, one per image


def looks_of(manifest: Manifest, *, settings: CacheSection, on_event: OnEvent = ignore) -> Looks:
    """Return what every sample of a scanned manifest looks like, in its order; each content is decoded once, ever.

    Raises:
        DataError: an image that was scanned can no longer be read.
    """
    entry = _entry(manifest, settings)
    known = {} if entry is None else _recall(entry, manifest.samples)
    fresh = {sample.digest: sample for sample in manifest.samples if sample.digest not in known}
    for digests, rows in _decoded(manifest, list(fresh.values()), on_event):
        known.update(zip(digests, rows, strict=True))
        if entry is not None:
            entry = _kept(entry, digests, rows)
    return np.concatenate([known[sample.digest] for sample in manifest.samples])  # (N,)


def look(content: bytes, *, value_range: Range | None = None, bands: Bands = COLOURS) -> Looks:
    """Return what the image in the bytes of an image file looks like, as an array of one row.

    A stack is grey by the mean of its channels; all of its numbers are in the hash, its first three in the colours.

    Raises:
        UndecodableError: there is none.
    """
    if bands.is_full:
        stack: Stack = examine(content, lambda stack: stack, value_range=value_range, bands=bands).content
        picture, grey, numbers = stack.picture(), stack.mean(), stack.numbers().tobytes()
    else:
        picture = decode(content, value_range=value_range)
        grey, numbers = picture.convert("L"), picture.tobytes()
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    channels = np.asarray(small).astype(np.int16)
    row = np.zeros(1, LOOK)
    row["height"], row["width"] = picture.height, picture.width
    row["format"] = FORMS.index(form_of(content))
    row["is_grey"] = not bands.is_full and int((channels.max(axis=2) - channels.min(axis=2)).max()) <= SAME_GREY
    row["contrast"] = np.asarray(grey).std()
    row["pixels"] = np.void(blake2b(repr(picture.size).encode() + numbers, digest_size=16).digest())
    row["grey"] = np.asarray(
        grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR) if bands.is_full else small.convert("L")
    )
    row["colour"] = np.asarray(small.resize((COARSE, COARSE), Image.Resampling.BOX))
    return row


def _decoded(
    manifest: Manifest, samples: Sequence[Sample], on_event: OnEvent
) -> Iterator[tuple[list[str], list[Looks]]]:
    with quiet(), ThreadPoolExecutor(num_cores()) as pool:
        for start in range(0, len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            rows = list(pool.map(partial(_look_at, manifest), chunk))
            yield [sample.digest for sample in chunk], rows
            on_event(Event.progress("look at images", start + len(chunk), len(samples)))


def _look_at(manifest: Manifest, sample: Sample) -> Looks:
    try:
        return look(
            read_content(Path(manifest.root, sample.file)), value_range=manifest.value_range, bands=manifest.bands
        )
    except (OSError, UndecodableError) as error:
        raise DataError(f"{sample.file} could be read when the data was scanned and cannot now: {error}") from error


def _entry(manifest: Manifest, settings: CacheSection) -> CacheEntry | None:
    """Return the cache entry of a data set's looks; None if nothing can be kept."""
    key = {
        "kind": "looks",
        "root": whole_place(manifest.root),
        "looks": LOOKS_VERSION,
        "bytes": LOOK.itemsize,
        "decode": DECODE_VERSION,
        "value_range": manifest.value_range,
        **({"bands": manifest.bands.count} if manifest.bands.is_full else {}),
        "versions": {"pillow": PIL.__version__},
    }
    try:
        return entry_with_room(key, settings, needed=len(manifest.samples) * LOOK.itemsize)
    except (OSError, ResourceError):
        return None


def _recall(entry: CacheEntry, samples: Sequence[Sample]) -> dict[str, Looks]:
    digests = [sample.digest for sample in samples if sample.digest in entry]
    entry.drop_damaged(digests)
    content, looks = entry.mapped(), {}
    for digest in digests:
        record = entry.find(digest)
        if record is not None:
            start = int(record["offset"])
            looks[digest] = np.frombuffer(content[start : start + LOOK.itemsize].tobytes(), LOOK)
    return looks


def _kept(entry: CacheEntry, digests: Sequence[str], rows: Sequence[Looks]) -> CacheEntry | None:
    """Add rows to an entry and return it; None, and no more is kept, when they cannot be written."""
    try:
        with entry.filling("the small images", on_event=ignore):
            entry.refresh()
            new = [place for place, digest in enumerate(digests) if digest not in entry]
            entry.add([digests[place] for place in new], [rows[place].view(np.uint8) for place in new])
    except (OSError, ResourceError):
        return None
    return entry
