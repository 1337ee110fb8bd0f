"""An image file as the RGB image that a person sees, or as a stack of all that it holds.

Grey, palette, alpha (on white), CMYK and EXIF-rotated files, numbers deeper than 8 bits (see `levels`), and
the first of several pages or frames; arrays (see `rasters`). The same path serves the scan, training, evaluation
and prediction. Whatever the bytes are, they cost one image or one `UndecodableError`, and memory for one large image at
a time.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from finetune.bands import COLOURS, Bands
from finetune.errors import DataError
from finetune.images.arrays import array_in, array_of, check_channels, num_bands_of
from finetune.images.files import DECODE_ERRORS, FORMATS, begins_as, read_content, unread_form
from finetune.images.four import DEEP, of_four, why_not_four
from finetune.images.levels import (
    Range,
    Span,
    colour_levels,
    deep_colour,
    grey_levels,
    is_deep,
    levels_of,
    range_of,
    read_lower_bytes,
    span_of,
    span_of_array,
    span_of_colours,
    strips,
    unfit,
)
from finetune.images.quiet import quiet
from finetune.images.rasters import RasterError
from finetune.images.shapes import middle, middle_of, smaller, upright
from finetune.images.stacks import picture_of, stack_of

DECODE_VERSION = 6  # goes up when the same file begins to give another image

DRAFT = 1.6  # reduced decoding below this changes the image visibly; above, by less than a level
LARGE = 2**24  # pixels of an image that is decoded while no other large one is


T = TypeVar("T")


class UndecodableError(DataError):
    """When a file is no image that can be read; the message says why."""

    @property
    def is_passing(self) -> bool:
        """Whether the cause is the machine (no memory, a refusal of the system) rather than the bytes."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """The result for an image, the span of the numbers of a deep one, and what of the file is not in the image."""

    content: T
    span: Span | None = None
    remark: str = ""


def read_rgb(path: Path, *, side: int | None = None, value_range: Range | None = None) -> Image.Image:
    """Return the image of a file.

    With `side`, an image is shrunk until its shorter side has that many pixels, after decoding a JPEG at
    reduced scale, as long as that leaves `DRAFT` times as many: for looking at, not for
    a network. `value_range` is what is black and white in an image deeper than 8 bits.

    Raises:
        UndecodableError: the file is missing, empty, truncated, damaged, too large or no image.
    """
    image: Image.Image = read(path, side=side, value_range=value_range).content
    return image


def read(
    path: Path, *, side: int | None = None, value_range: Range | None = None, bands: Bands | None = None
) -> Decoded[Any]:
    """Return the image of a file, and what is to be said of the file; see `read_rgb` and `examine`.

    Raises:
        UndecodableError: the file is missing, empty, truncated, damaged, too large or no image.
    """
    try:
        content = read_content(path)
    except OSError as error:
        raise UndecodableError(f"{path}: cannot be read: {error.strerror or error}") from error
    with quiet():
        return examine(content, lambda image: image, side=side, value_range=value_range, bands=bands)


_turn = threading.RLock()


def alone(is_large: bool) -> AbstractContextManager[Any]:
    """Return a context that lets only one thread in at a time, if what it decodes is large."""
    return _turn if is_large else nullcontext()


def decode(content: bytes, *, side: int | None = None, value_range: Range | None = None) -> Image.Image:
    """Return the image in the bytes of an image file; see `read_rgb`."""
    image: Image.Image = examine(content, lambda image: image, side=side, value_range=value_range, bands=None).content
    return image


def examine(
    content: bytes,
    make: Callable[[Any], T],
    *,
    side: int | None = None,
    value_range: Range | None = None,
    bands: Bands | None = COLOURS,
) -> Decoded[T]:
    """Return what `make` makes of the image in the bytes of an image file, and what is to be said of the file.

    Of colours it is an RGB image, of four `bands` as `four.of_four` has it, of full ones a `Stack`; with None it is a
    picture to look at, whatever the file holds. No other thread holds a large image meanwhile. A strip more than
    `LONGEST` times as long as wide is cut to its middle, which is what views show. Without a `value_range`, black and
    white of a deep image are what `levels.range_of` makes of it alone.

    Raises:
        UndecodableError: there is none.
    """
    if not content:
        raise UndecodableError("the file is empty")
    try:
        array = array_in(content, bands)
        if array is not None:
            with alone(array.size > LARGE):
                return _of_array(array, make, side=side, value_range=value_range, bands=bands)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if bands is not None and bands.is_full:
                remark = _pages(image)
                with alone(image.width * image.height > LARGE):
                    array = array_of(image, content)
                    return _of_array(array, make, side=side, value_range=value_range, bands=bands, remark=remark)
            num_bands = 3 if bands is None else bands.count
            if num_bands == 4 and (reason := why_not_four(image, num_bands_of(image))):
                raise UndecodableError(reason)
            remark = _remark(image)
            if side is not None:
                at_least = math.ceil(DRAFT * side)
                image.draft("RGB" if image.mode in ("RGB", "YCbCr") else None, (at_least, at_least))
            with alone(image.width * image.height > LARGE):
                levelled, span = _levelled(image, content, value_range)
                shown = _rgb(levelled) if num_bands == 3 else of_four(levelled)
                return Decoded(make(smaller(shown, side).convert(shown.mode)), span, remark)
    except DECODE_ERRORS as error:
        raise UndecodableError(_reason(error, content)) from error


def _of_array(
    array: NDArray[Any],
    make: Callable[[Any], T],
    *,
    side: int | None = None,
    value_range: Range | None,
    bands: Bands | None,
    remark: str = "",
) -> Decoded[T]:
    """Return what `make` makes of an array (H, W, C), as `examine` does for a file."""
    if bands is not None:
        check_channels(array.shape[2], bands)
    array, span = middle_of(array), span_of_array(array)
    between = (0.0, 255.0) if span is None else _fitting(span, value_range)
    if bands is not None and bands.is_full:
        return Decoded(make(smaller(stack_of(array, between), side)), span, remark)
    levels = array if span is None else levels_of(array, between)
    if bands is None or bands.count == 3:
        return Decoded(make(smaller(picture_of(levels), side)), span, remark)
    if span is not None:
        raise UndecodableError(DEEP)
    return Decoded(make(smaller(Image.frombytes("CMYK", array.shape[1::-1], levels.tobytes()), side)), None, remark)


def read_array(path: Path, bands: Bands) -> NDArray[Any]:
    """Return all channels of a file (H, W, C) with all of their bits, as a stack is made of them.

    Raises:
        UndecodableError, OSError: there is no image, or it has other channels.
    """
    content = read_content(path)
    with quiet():
        try:
            array = array_in(content, bands)
            if array is None:
                with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                    array = array_of(image, content)
            check_channels(array.shape[2], bands)
            return array
        except DECODE_ERRORS as error:
            raise UndecodableError(_reason(error, content)) from error


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of the image of a file; pictures are not decoded for that.

    Raises:
        UndecodableError, OSError: there is none.
    """
    content = read_content(path)
    try:
        array = array_in(content, None)
        if array is not None:
            return array.shape[1], array.shape[0]
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except DECODE_ERRORS as error:
        raise UndecodableError(_reason(error, content)) from error


def _remark(image: Image.Image) -> str:
    """Return what of a file will not be seen, as a note; empty if all is seen."""
    if num_bands_of(image) == 4 and image.mode == "RGB":
        return "four bands of which the fourth is not transparency; the first three are used as red, green and blue"
    return _pages(image)


def _pages(image: Any) -> str:
    # The second image of an MPO is a preview or the other eye's view, and counting the frames of a GIF reads it all.
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "is_animated", False):
        return "several pages or frames; the first is used"
    return ""


def examine_open(
    image: Image.Image | NDArray[Any],
    make: Callable[[Any], T],
    *,
    value_range: Range | None = None,
    bands: Bands = COLOURS,
) -> Decoded[T]:
    """Return what `make` makes of an image in memory, as `examine` does for the bytes of a file.

    Raises:
        UndecodableError: it cannot be brought into the range of values, or has other channels.
    """
    try:
        if bands.is_full or isinstance(image, np.ndarray):
            array = image if isinstance(image, np.ndarray) else array_of(image, b"")
            return _of_array(array, make, value_range=value_range, bands=bands)
        if bands.count == 4 and (reason := why_not_four(image, 0)):
            raise UndecodableError(reason)
        with alone(image.width * image.height > LARGE):
            levelled, span = _levelled(image, b"", value_range)
            return Decoded(make(_rgb(levelled) if bands.count == 3 else of_four(levelled)), span)
    except DECODE_ERRORS as error:
        raise UndecodableError(_reason(error, b"")) from error


def _levelled(image: Image.Image, content: bytes, value_range: Range | None) -> tuple[Image.Image, Span | None]:
    """Return an image upright, with 8 bits per channel, and the span of its numbers if they were deeper."""
    raw = deep_colour(image)
    image.load()
    turned = middle(upright(image))
    if raw is None and not is_deep(turned):
        return turned, None
    if raw is None:
        span = span_of(turned)
        return grey_levels(turned, _fitting(span, value_range)), span
    with Image.open(io.BytesIO(content), formats=FORMATS) as again:
        lower = middle(upright(again)) if read_lower_bytes(again, raw) else None
    span = span_of_colours(turned, lower)
    return colour_levels(turned, lower, _fitting(span, value_range)), span


def _fitting(span: Span, value_range: Range | None) -> Range:
    """Return the range of values for an image: the one given, or its own.

    Raises:
        UndecodableError: it does not fit.
    """
    between = value_range or range_of(span)
    if reason := unfit(span, between):
        raise UndecodableError(reason)
    return between


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, a large one band by band: otherwise memory would hold it up to five times."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.width * image.height <= LARGE:
        return _flat(image)
    whole = Image.new("RGB", image.size)
    for box in strips(image):
        whole.paste(_flat(image.crop(box)), box)
    return whole


def _flat(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: BaseException, content: bytes) -> str:
    if isinstance(error, RasterError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        if unread := unread_form(content):
            return f"an image in {unread}, which this installation of Pillow does not read: convert it to JPEG or PNG"
        found = next((form for form in FORMATS if begins_as(content, form)), None)
        if found is None:
            return "no image in a format that can be read"
        return f"damaged image: it begins as {found} but is cut off, or is something else"
    if isinstance(error, MemoryError):
        return "no memory for its pixels"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    return f"damaged image: {str(error) or type(error).__name__}"
