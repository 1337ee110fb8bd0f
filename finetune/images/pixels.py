"""The pixel cache: the plain view of every image and a smaller image, as uint8 rows of one memory-mapped file.

The scan decodes every file anyway; what passes need is kept here, so that no later pass decodes it again.
It is the same whether it comes from here or from the file. Letters: H W pixels, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from torch import Tensor

from finetune.bands import COLOURS, Bands
from finetune.cache_entries import (
    RECORD,
    CacheEntry,
    checksum,
    entries_folder,
    entry_with_room,
    find_entry,
)
from finetune.errors import ResourceError
from finetune.images.decode import DECODE_VERSION
from finetune.images.levels import Range
from finetune.images.stacks import Stack, stack_from
from finetune.images.stores import whole_place
from finetune.images.transforms import View, picture_side, plain_view, source_of
from finetune.settings import CacheSection
from finetune.types import Preprocessing

USUAL_ASPECT = 1.5  # of photographs: tells the size of the cache before any is read
LARGEST = 2**26  # bytes of a row: longer strips are decoded each time
ABSENT = np.zeros((), RECORD)


class PixelRow(NamedTuple):
    """What is kept of an image: the bytes of its plain view (C, H, W), then of the smaller one, and its height."""

    content: np.ndarray
    height: int


class PixelCache:
    """The images of one data set for one way of preprocessing, by content."""

    def __init__(self, entry: CacheEntry, preprocessing: Preprocessing) -> None:
        self.entry, self.preprocessing = entry, preprocessing
        self.view, self.side = plain_view(preprocessing), picture_side(preprocessing)

    def __contains__(self, digest: str) -> bool:
        return digest in self.entry

    @property
    def value_range(self) -> Range | None:
        """What is black and white in images deeper than 8 bits; they are not kept before it is known."""
        return self.preprocessing.value_range

    def row(self, image: Image.Image | Stack) -> PixelRow:
        """Return what is kept of an image."""
        small = source_of(image, self.side)
        numbers = small.numbers() if isinstance(small, Stack) else np.asarray(small)
        content = np.concatenate([self.view(image).numpy().reshape(-1), numbers.reshape(-1)])
        return PixelRow(content.view(np.uint8), small.size[1])

    def add(self, digests: Sequence[str], rows: Sequence[PixelRow]) -> None:
        """Keep images.

        Raises:
            ResourceError: the disk is full.
        """
        kept = [(digest, row) for digest, row in zip(digests, rows, strict=True) if row.content.nbytes <= LARGEST]
        contents, heights = [row.content for _, row in kept], [row.height for _, row in kept]
        self.entry.add([digest for digest, _ in kept], contents, heights=heights)

    def find(self, digests: Sequence[str]) -> FoundPixels:
        """Return the rows of images, to be read by their place among `digests`."""
        records = [ABSENT if record is None else record for record in map(self.entry.find, digests)]
        own = self.preprocessing
        return FoundPixels(self.entry.rows_file, np.array(records, RECORD), own.image_size, own.bands)

    def serves(self, preprocessing: Preprocessing) -> bool:
        """Return whether the views of a preprocessing can be cut from here."""
        return _facts(preprocessing) == _facts(self.preprocessing)


class FoundPixels:
    """Rows of a pixel cache by the index of a sample; small enough to hand to worker processes."""

    def __init__(self, file: Path, records: np.ndarray, image_size: tuple[int, int], bands: Bands = COLOURS) -> None:
        self.file, self.records, self.image_size, self.bands = file, records, image_size, bands
        self.is_checked = np.zeros(len(records), dtype=bool)
        self._rows: np.ndarray | None = None

    def tensor(self, index: int, view: View) -> Tensor | None:
        """Return a view (C, H, W) of a sample; None where the sample is absent or damaged."""
        row = self._row(index)
        if row is None:
            return None
        count = self.bands.count
        end = _itemsize(self.bands) * count * prod(self.image_size)
        part = row[:end] if view.is_plain else row[end:]
        numbers = part.copy().view(np.float32) if self.bands.is_full else part
        if view.is_plain:
            return torch.from_numpy(numbers.copy()).view(count, *self.image_size)
        small = numbers.reshape(int(self.records[index]["height"]), -1, count)
        if self.bands.is_full:
            return view.transform(stack_from(small))
        if count == 3:
            return view.transform(Image.fromarray(small))
        return view.transform(Image.frombytes("CMYK", small.shape[1::-1], small.tobytes()))

    def _row(self, index: int) -> np.ndarray | None:
        record = self.records[index]
        _, offset, length, _, total = record.tolist()
        if not length:
            return None
        try:
            if self._rows is None:
                self._rows = np.memmap(self.file, np.uint8, mode="r")
        except (OSError, ValueError):
            return None
        row = self._rows[offset : offset + length]
        if not self.is_checked[index] and (len(row) < length or checksum(row, record) != total):
            return None
        self.is_checked[index] = True
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # a map would be copied


def open_pixels(
    root: str | Path, *, preprocessing: Preprocessing, num_images: int, settings: CacheSection
) -> PixelCache | None:
    """Return the pixel cache of a data set, opened or begun; None when it is not wanted or would not fit.

    Raises:
        ResourceError: its folder cannot be written.
    """
    if settings.pixels == "none" or not num_images:
        return None
    needed = pixel_bytes(preprocessing, num_images)
    entry = entry_with_room(_key(root, preprocessing), settings, needed=needed)
    return PixelCache(entry, preprocessing) if entry else None


def pixel_bytes(preprocessing: Preprocessing, num_images: int) -> int:
    """Return roughly how many bytes the pixel cache of this number of photographs takes."""
    small = picture_side(preprocessing) ** 2 * USUAL_ASPECT
    each = _itemsize(preprocessing.bands) * preprocessing.bands.count
    return int(num_images * each * (small + prod(preprocessing.image_size)))


def _itemsize(bands: Bands) -> int:
    return 4 if bands.is_full else 1


def opened_or_none(
    root: str | Path, *, preprocessing: Preprocessing, num_images: int, settings: CacheSection
) -> PixelCache | None:
    """Return an open pixel cache, or None if its folder cannot be written: a cache is never necessary."""
    try:
        return open_pixels(root, preprocessing=preprocessing, num_images=num_images, settings=settings)
    except ResourceError:
        return None


def filled_pixels(root: str | Path, *, preprocessing: Preprocessing, settings: CacheSection) -> PixelCache | None:
    """Return the pixel cache that an earlier run has left of a data set; None where there is none."""
    if settings.pixels == "none":
        return None
    try:
        entry = find_entry(entries_folder(settings.folder), _key(root, preprocessing))
    except OSError:
        return None
    return PixelCache(entry, preprocessing) if entry else None


def _key(root: str | Path, preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "kind": "pixels",
        "root": whole_place(root),
        **_facts(preprocessing),
        "side": picture_side(preprocessing),
        "decode": DECODE_VERSION,
        "versions": {"pillow": PIL.__version__, "timm": timm.__version__, "torch": torch.__version__},
    }


def _facts(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what the pixels of a view depend on; the mean is the colour of the border."""
    names = ("image_size", "interpolation", "crop_pct", "crop_mode", "value_range")
    return {name: getattr(preprocessing, name) for name in names} | {
        "mean": preprocessing.border,
        **({"bands": preprocessing.bands.count} if not preprocessing.bands.are_colours else {}),
        **({"depth": preprocessing.depth} if preprocessing.bands.is_full else {}),
    }
