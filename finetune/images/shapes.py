"""Images turned, cut and made smaller, however many channels they have. Letters: H W pixels, C channels."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, overload

from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.images.files import DECODE_ERRORS
from finetune.images.stacks import Stack
from finetune.types import LONGEST

GAP = 3.0  # an image is averaged over blocks until it has this many times the pixels asked for on a side, then resized


def middle(image: Image.Image) -> Image.Image:
    """Return the middle of a strip that is more than `LONGEST` times as long as wide, any other image as it is."""
    left, top, right, bottom = _middle_box(*image.size)
    return image if (right, bottom) == image.size else image.crop((left, top, right, bottom))


def middle_of(array: NDArray[Any]) -> NDArray[Any]:
    """Return the middle of an array (H, W, C), as `middle` does of an image."""
    left, top, right, bottom = _middle_box(array.shape[1], array.shape[0])
    return array[top:bottom, left:right]


def _middle_box(width: int, height: int) -> tuple[int, int, int, int]:
    longest = LONGEST * min(width, height)
    kept = min(width, longest), min(height, longest)
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    return left, top, left + kept[0], top + kept[1]


@overload
def smaller(image: Image.Image, side: int | None) -> Image.Image: ...


@overload
def smaller(image: Image.Image | Stack, side: int | None) -> Image.Image | Stack: ...


def smaller(image: Image.Image | Stack, side: int | None) -> Image.Image | Stack:
    """Return an image whose shorter side has at most `side` pixels."""
    if isinstance(image, Stack):
        return Stack(tuple(smaller(channel, side) for channel in image.channels))
    size = size_within(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=GAP)


def size_within(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Return the size, width and height, of an image whose shorter side is to have at most `side` pixels."""
    if side is None or min(size) <= side:
        return size
    share = side / min(size)
    return max(side, round(size[0] * share)), max(side, round(size[1] * share))


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says; where that is damaged, as it is, as viewers do."""
    with suppress(*DECODE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)
    return image
