"""Images whose numbers are deeper than 8 bits: what they span, and which number is black and which white.

One range holds for a whole data set, from its numbers: a scale of its own for every image would make
equal things differ, and that of the file format would make 12-bit numbers in 16-bit files nearly black.
Letters: H W pixels, C channels.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REAL_STEPS = (1.0, 255.0, 65535.0)  # what white usually is in floats
BAND = 2**18  # pixels of a large image that are converted at once
DEEP_COLOUR = re.compile(r"(RGB|RGBX|RGBA|RGBa|LA);16([BLN])")  # Pillow keeps the upper 8 bits of these
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

Range = tuple[float, float]  # black and white


class Span(NamedTuple):
    """The least and the greatest number of an image deeper than 8 bits; whether they are floats, and read by half."""

    low: float
    high: float
    is_real: bool = False
    is_upper: bool = False  # only the upper 8 of its 16 bits can be read


def range_of(*spans: Span) -> Range:
    """Return what is black and what is white in images of these spans, all of them whole numbers or all floats.

    Black is 0, or the least number where one is negative. White is the greatest number of as many bits as
    the greatest takes (255, ..., 4095, ..., 65535); of floats 1, 255 or 65535, where the greatest is at least an
    eighth of that; else, and beyond 16 bits, the greatest itself.
    """
    low, high = min(0.0, *(span.low for span in spans)), max(span.high for span in spans)
    return low, max(_white(low, high, is_real=spans[0].is_real), low + 1e-6)


def unfit(span: Span, between: Range) -> str:
    """Return why an image of a span shows nothing in a range, or is too coarse for it; empty where it fits."""
    low, high = between
    if span.is_real and 0 < span.high * 256 < high:
        return f"holds floats up to {span.high:g}, and white is {high:g}: it would be black"
    if span.is_real and span.low > high:
        return f"holds floats from {span.low:g} up, and white is {high:g}: it would be white"
    if span.is_upper and high - low < 2**15:
        return "16-bit numbers of which only the upper 8 bits can be read; save it without transparency"
    return ""


def _white(low: float, high: float, *, is_real: bool) -> float:
    if low < 0:
        return high
    if is_real:
        return next((step for step in REAL_STEPS if step / 8 <= high <= step), high)
    return float(2 ** max(8, int(high).bit_length()) - 1) if high < 2**16 else high


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is one channel of numbers deeper than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def span_of(image: Image.Image) -> Span:
    """Return the span of the finite numbers of a deep image."""
    ends = [(part.min(), part.max()) for box in strips(image) if (part := _finite(image.crop(box))).size]
    low, high = (float(min(e[0] for e in ends)), float(max(e[1] for e in ends))) if ends else (0.0, 0.0)
    return Span(low, high, image.mode == "F")


def grey_levels(image: Image.Image, between: Range) -> Image.Image:
    """Return a deep image in RGB, in L where a number is transparent: from 0 (black) to 255 (white), clipped."""
    clear = image.info.get("transparency")  # the number that stands for nothing
    levels = Image.new("RGB" if clear is None else "L", image.size)
    for box in strips(image):
        levels.paste(Image.fromarray(levels_of(_values(image.crop(box)), between)), box)
    if isinstance(clear, (int, float)):
        levels.info["transparency"] = int(levels_of(np.array([float(clear)]), between)[0])
    return levels


def deep_colour(image: Image.Image) -> re.Match[str] | None:
    """Return the raw mode of an image, not loaded yet, that has several channels of 16 bits."""
    for tile in getattr(image, "tile", ()):
        raw = tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0]
        if match := DEEP_COLOUR.fullmatch(str(raw)):
            return match
    return None


def read_lower_bytes(image: Any, raw: re.Match[str]) -> bool:
    """Load the lower 8 bits of every channel, which Pillow reads in the other byte order; return whether it can."""
    mode, order = raw.groups()
    if mode not in ("RGB", "RGBX", "RGBA"):
        return False
    other = f"{mode};16{OTHER_ORDER[order]}"
    image.tile = [
        type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)
        for tile in image.tile
        for arguments in [other if isinstance(tile[3], str) else (other, *tile[3][1:])]
    ]
    image.load()
    return True


def span_of_colours(upper: Image.Image, lower: Image.Image | None) -> Span:
    """Return the span of the colours of an image given as two images: the upper bytes and the lower ones."""
    ends = [(part.min(), part.max()) for _, part in _colours(upper, lower)]
    low, high = float(min(low for low, _ in ends)), float(max(high for _, high in ends))
    return Span(low, high, is_upper=lower is None)


def colour_levels(upper: Image.Image, lower: Image.Image | None, between: Range) -> Image.Image:
    """Return an image with 8 bits per colour from its upper and lower bytes; transparency keeps its upper byte."""
    levels = np.array(upper)  # (H, W, C)
    for rows, values in _colours(upper, lower):
        levels[rows, :, : values.shape[2]] = levels_of(values, between)
    image = Image.frombytes(upper.mode, upper.size, levels.tobytes())
    image.info.update({key: value for key, value in upper.info.items() if key == "transparency"})
    return image


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of about `BAND` pixels, from top to bottom: a large image is not converted at once."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _colours(upper: Image.Image, lower: Image.Image | None) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the rows of a band and its colours (H, W, C) as whole numbers of 16 bits."""
    for box in strips(upper):
        high = np.asarray(upper.crop(box))[..., :3]
        low = 255 if lower is None else np.asarray(lower.crop(box))[..., :3]
        yield slice(box[1], box[3]), high.astype(np.float64) * 256 + low


def scaled(values: NDArray[np.float64], between: Range) -> NDArray[np.float64]:
    """Return numbers from 0 (black) to 255 (white), clipped but not rounded; NaN is black."""
    low, high = between
    with np.errstate(invalid="ignore", over="ignore"):
        levels = 255 * (values - low) / (high - low)
    return np.nan_to_num(levels, posinf=255, neginf=0).clip(0, 255)


def levels_of(values: NDArray[Any], between: Range) -> NDArray[np.uint8]:
    """Return numbers as levels of 8 bits; see `scaled`."""
    return scaled(values.astype(np.float64), between).round().astype(np.uint8)


def span_of_array(array: NDArray[Any]) -> Span | None:
    """Return the span of an array's numbers; None if they have 8 bits."""
    if array.dtype == np.uint8:
        return None
    return Span(float(array.min()), float(array.max()), array.dtype.kind == "f")


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image).astype(np.float64)


def _finite(image: Image.Image) -> NDArray[np.float64]:
    values = _values(image)
    return values[np.isfinite(values)]
