"""The pixel cache: decoded pictures, made smaller, as uint8 rows of one memory-mapped file.

The scan decodes every file anyway; what it decodes is kept here, so that no later pass decodes it
again. A picture is the same whether it comes from here or from its file (see `decode.read_rgb`).
Letters: H W pixels, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from finetune.data.decode import DECODE_VERSION
from finetune.entries import RECORD, Entry, checksum, entries_folder, entry_name, make_room, open_entry
from finetune.errors import ResourceError
from finetune.settings import CacheSection

USUAL_ASPECT = 1.5  # of photographs, to know the size of the cache before any is read
LARGEST = 2**26  # bytes of a row: longer strips than that are decoded anew
ABSENT = np.zeros((), RECORD)


class PixelCache:
    """The pictures of one data set at one size, by content."""

    def __init__(self, entry: Entry, side: int) -> None:
        self.entry, self.side = entry, side

    def __contains__(self, digest: str) -> bool:
        return digest in self.entry

    def add(self, digests: Sequence[str], pictures: Sequence[Image.Image]) -> None:
        """Keep pictures.

        Raises:
            ResourceError: the disk is full.
        """
        rows = [np.asarray(picture).reshape(-1) for picture in pictures]
        heights = [picture.height for picture in pictures]
        kept = [index for index, row in enumerate(rows) if row.nbytes <= LARGEST]
        self.entry.add([digests[i] for i in kept], [rows[i] for i in kept], heights=[heights[i] for i in kept])

    def find(self, digests: Sequence[str]) -> FoundPixels:
        """Yield the rows of images, to be read by their place among `digests`."""
        found = (self.entry.find(digest) for digest in digests)
        records = np.array([ABSENT if record is None else record for record in found], RECORD)
        return FoundPixels(self.entry.rows_file, records)


class FoundPixels:
    """Rows of a pixel cache by the index of a sample; small enough to hand to worker processes."""

    def __init__(self, file: Path, records: np.ndarray) -> None:
        self.file, self.records = file, records
        self.is_checked = np.zeros(len(records), dtype=bool)
        self._rows: np.ndarray | None = None

    def read(self, index: int) -> Image.Image | None:
        """Yield the picture of a sample; None where it is absent or damaged."""
        record = self.records[index]
        _, offset, length, height, total = record.tolist()
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
        return Image.fromarray(row.reshape(height, -1, 3))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}  # a map would be copied


def open_pixels(root: str | Path, *, side: int, num_images: int, settings: CacheSection) -> PixelCache | None:
    """Open the pixel cache of a data set, or begin it; None when it is not wanted or would not fit.

    Raises:
        ResourceError: its folder cannot be written.
    """
    if settings.pixels == "none" or not num_images:
        return None
    key = {
        "kind": "pixels",
        "root": str(Path(root).absolute()),
        "side": side,
        "decode": DECODE_VERSION,
        "versions": {"pillow": PIL.__version__},
    }
    folder, limit = entries_folder(settings.folder), int(settings.limit * 2**30)
    if not make_room(folder, needed=pixel_bytes(side, num_images), limit=limit, keep=[entry_name(key)]):
        return None
    entry = open_entry(folder, key)
    entry.touch()
    return PixelCache(entry, side)


def pixel_bytes(side: int, num_images: int) -> int:
    """Yield about how many bytes the pixel cache of so many photographs takes."""
    return int(num_images * side * side * USUAL_ASPECT * 3)


def opened_or_none(root: str | Path, *, side: int, num_images: int, settings: CacheSection) -> PixelCache | None:
    """Open a pixel cache where its folder can be written; what is cached is never needed."""
    try:
        return open_pixels(root, side=side, num_images=num_images, settings=settings)
    except ResourceError:
        return None
