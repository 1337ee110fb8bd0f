"""The content of a file as an array (H, W, C): the numbers of .npy and TIFF files, or a picture with all its bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from finetune.bands import Bands
from finetune.images.files import FORMATS
from finetune.images.four import take_fourth
from finetune.images.levels import deep_colour, read_lower_bytes
from finetune.images.rasters import BANDS_TAG, RasterError, bands_of_tiff, is_npy, read_npy, read_tiff
from finetune.images.shapes import upright
from finetune.wording import counted

HIGH_BIT_DEPTH = 0x40  # in the third byte of the box av1C
PICTURED = 4  # bands that Pillow knows the meaning of


def array_in(content: bytes, bands: Bands | None) -> NDArray[Any] | None:
    """Return the array (H, W, C) in a file that is not a picture; None for pictures."""
    if is_npy(content):
        return read_npy(content)
    num_bands = bands_of_tiff(content)
    is_of_pages = num_bands == 1 and bands is not None and bands.is_full and bands.count > 1
    if num_bands is None or not (num_bands > PICTURED or is_of_pages):
        return None
    if bands is not None and not is_of_pages:
        check_channels(num_bands, bands)
    return read_tiff(content)


def array_of(image: Any, content: bytes) -> NDArray[Any]:
    """Return all channels of an open picture (H, W, C), upright, with all of their bits."""
    raw = deep_colour(image)
    if is_deep_avif(image, content):
        raise RasterError("channels of 10 or 12 bits, of which Pillow reads 8: save it as .npy (H, W, C)")
    take_fourth(image, num_bands_of(image))
    image.load()
    turned = upright(image)
    if turned.mode in ("P", "PA", "1"):
        turned = turned.convert("L" if turned.mode == "1" else "RGBA" if "transparency" in turned.info else "RGB")
    numbers = np.asarray(turned)
    if raw is not None:
        if not content:
            raise RasterError("channels of 16 bits, of which Pillow keeps 8: give its file")
        with Image.open(io.BytesIO(content), formats=FORMATS) as again:
            take_fourth(again, num_bands_of(again))
            if not read_lower_bytes(again, raw):
                raise RasterError("channels of 16 bits, of which Pillow reads 8: save it as .npy (H, W, C)")
            numbers = numbers.astype(np.uint16) * 256 + np.asarray(upright(again))
    return numbers if numbers.ndim == 3 else numbers[:, :, None]


def is_deep_avif(image: Any, content: bytes) -> bool:
    """Return whether an open picture is an AVIF of more than 8 bits a channel."""
    place = content.find(b"av1C") if image.format == "AVIF" else -1
    return place >= 0 and bool(content[place + 6 : place + 7] and content[place + 6] & HIGH_BIT_DEPTH)


def check_channels(count: int, bands: Bands) -> None:
    """Refuse an image with other channels than are read.

    Raises:
        RasterError: it has others.
    """
    taken = (1, 3) if bands.are_colours else (bands.count,)
    if count not in taken:
        raise RasterError(
            f"{counted(count, 'channel')}, where {bands.count} {'is' if bands.count == 1 else 'are'} read:"
            f" data.channels = {count} takes such images"
        )


def num_bands_of(image: Any) -> int:
    """Return how many bands an open TIFF claims to have; 3 for other pictures."""
    return int(image.tag_v2.get(BANDS_TAG, 1)) if isinstance(image, TiffImagePlugin.TiffImageFile) else 3
