"""An image file as the RGB picture that a person sees.

Grey, palette, alpha (on white), CMYK, 16-bit and EXIF-rotated files, and the first frame of an
animation. The same path serves the scan, training, evaluation and prediction.
"""

from __future__ import annotations

import errno
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import DataError

DECODE_VERSION = 2  # goes up when the same file begins to give another picture

DRAFT = 1.6  # reduced decoding below that changes the picture visibly; above, by less than a level

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads MPO as JPEG

Image.init()  # else Pillow knows only its five commonest formats, and `formats` raises KeyError

# What Pillow's readers raise on damaged files, as seen when fed truncated and altered ones.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UndecodableError(DataError):
    """When a file is no image that can be read; the message says why."""


def is_image_name(name: str) -> bool:
    """Tell by its name whether a file should be an image."""
    return Path(name).suffix.lower() in EXTENSIONS


def read_rgb(path: Path, *, side: int | None = None) -> Image.Image:
    """Yield the picture of a file.

    With `side`, a picture whose shorter side has more pixels is made smaller until it has that many;
    a JPEG is decoded at reduced scale before, as long as that leaves `DRAFT` times as many.

    Raises:
        UndecodableError: the file is missing, empty, truncated, damaged, too large or no image.
    """
    try:
        content = read_content(path)
    except OSError as error:
        raise UndecodableError(f"{path}: {error.strerror or error}") from error
    with quiet():
        return decode(content, side=side)


def read_content(path: Path) -> bytes:
    """Yield the bytes of a file; a pipe or device, which may never end, is an OSError."""
    if not S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd files inside the block.

    Filters belong to the whole process: this goes around a pool of threads, never inside of one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(content: bytes, *, side: int | None = None) -> Image.Image:
    """Yield the picture in the bytes of an image file; see `read_rgb`."""
    if not content:
        raise UndecodableError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if side is not None:
                at_least = math.ceil(DRAFT * side)
                image.draft("RGB" if image.mode in ("RGB", "YCbCr") else None, (at_least, at_least))
            image.load()
            return _smaller(_rgb(_upright(image)), side)
    except DECODE_ERRORS as error:
        raise UndecodableError(_reason(error)) from error


def _smaller(image: Image.Image, side: int | None) -> Image.Image:
    if side is None or min(image.size) <= side:
        return image
    share = side / min(image.size)
    size = (max(side, round(image.width * share)), max(side, round(image.height * share)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; where that is damaged, leave it as viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _stretched(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Show 32-bit whole numbers or floats as viewers do: 0..1, 0..255, 0..65535, else their range."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    if low >= 0:
        low = 0.0
        is_whole = image.mode == "I"
        steps = (255, 65535) if is_whole else (1, 255, 65535)
        high = float(next((step for step in steps if high <= step), high))
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image in a format that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    return f"damaged image: {str(error) or type(error).__name__}"
