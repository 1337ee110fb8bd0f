"""The pixel cache: the plain view of every image and a smaller image, as uint8 rows of one memory-mapped file.

The scan decodes every file anyway; what passes need of it is kept here, so that no later pass decodes it
again. It is the same whether it comes from here or from its file. Letters: H W pixels, N images.
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

from finetune.cache_entries import (
    RECORD,
    CacheEntry,
    checksum,
    entries_folder,
    entry_name,
    find_entry,
    make_room,
    open_entry,
)
from finetune.errors import ResourceError
from finetune.images.decode import DECODE_VERSION, smaller
from finetune.images.levels import Range
from finetune.images.transforms import View, picture_side, plain_view
from finetune.settings import CacheSection
from finetune.types import Preprocessing

USUAL_ASPECT = 1.5  # of photographs: tells the size of the cache before any is read
LARGEST = 2**26  # bytes of a row: longer strips than that are decoded anew
ABSENT = np.zeros((), RECORD)


class PixelRow(NamedTuple):
    """What is kept of an image: the bytes of its plain view (3, H, W), then of the smaller one, and its height."""

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

    def row(self, image: Image.Image) -> PixelRow:
        """Return what is kept of an RGB image."""
        small = smaller(image, self.side)
        return PixelRow(
            np.concatenate([self.view(image).numpy().reshape(-1), np.asarray(small).reshape(-1)]), small.height
        )

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
        """Return whether the views of some preprocessing can be cut from here."""
        return _facts(preprocessing) == _facts(self.preprocessing)


class FoundPixels:
    """Rows of a pixel cache by the index of a sample; small enough to hand to worker processes."""

    def __init__(self, file: Path, records: np.ndarray, image_size: tuple[int, int], bands: int = 3) -> None:
        self.file, self.records, self.image_size, self.bands = file, records, image_size, bands
        self.is_checked = np.zeros(len(records), dtype=bool)
        self._rows: np.ndarray | None = None

    def tensor(self, index: int, view: View) -> Tensor | None:
        """Return a view of a sample, uint8 (3, H, W); None where the sample is absent or damaged."""
        row = self._row(index)
        if row is None:
            return None
        end = self.bands * prod(self.image_size)
        if view.is_plain:
            return torch.from_numpy(row[:end].copy()).view(self.bands, *self.image_size)
        height = int(self.records[index]["height"])
        if self.bands == 3:
            return view.transform(Image.fromarray(row[end:].reshape(height, -1, 3)))
        width = (len(row) - end) // (self.bands * height)
        return view.transform(Image.frombytes("CMYK", (width, height), row[end:].tobytes()))

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
    key = _key(root, preprocessing)
    folder, limit = entries_folder(settings.folder), int(settings.limit * 2**30)
    needed = pixel_bytes(preprocessing, num_images)
    if not make_room(folder, needed=needed, limit=limit, keep=[entry_name(key)]):
        return None
    entry = open_entry(folder, key)
    entry.touch()
    return PixelCache(entry, preprocessing)


def pixel_bytes(preprocessing: Preprocessing, num_images: int) -> int:
    """Return about how many bytes the pixel cache of so many photographs takes."""
    small = picture_side(preprocessing) ** 2 * USUAL_ASPECT
    return int(num_images * preprocessing.bands * (small + prod(preprocessing.image_size)))


def opened_or_none(
    root: str | Path, *, preprocessing: Preprocessing, num_images: int, settings: CacheSection
) -> PixelCache | None:
    """Return a pixel cache, opened, or None where its folder cannot be written: what is cached is never needed."""
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
        "root": str(Path(root).absolute()),
        **_facts(preprocessing),
        "side": picture_side(preprocessing),
        "decode": DECODE_VERSION,
        "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
    }


def _facts(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what the pixels of a view depend on; the mean is the colour of its border."""
    names = ("image_size", "interpolation", "crop_pct", "crop_mode", "value_range")
    return {name: getattr(preprocessing, name) for name in names} | {
        "mean": preprocessing.border,
        **({"bands": preprocessing.bands} if preprocessing.bands != 3 else {}),
    }
