"""An image file as the RGB picture that a person sees.

Grey, palette, alpha (on white), CMYK, 16-bit and EXIF-rotated files, and the first frame of an
animation. The same path serves the scan, training, evaluation and prediction. Whatever the bytes are,
they cost one picture or one `UndecodableError`, and memory for one large picture at a time.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from finetune.errors import DataError

DECODE_VERSION = 3  # goes up when the same file begins to give another picture

DRAFT = 1.6  # reduced decoding below that changes the picture visibly; above, by less than a level
LONGEST = 16  # times its shorter side is what is kept of a strip: made larger, all of it would fill the memory
LARGE = 2**24  # pixels of a picture that is decoded while no other such one is
MOST = float(np.finfo(np.float32).max)  # stands for infinity
BAND = 2**20  # pixels of a large picture that are converted at once
LARGEST_FILE = 2**30  # bytes; as many pixels as Pillow takes, at 16 bits, are hardly more

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

    @property
    def is_passing(self) -> bool:
        """Tell whether the cause is the machine (no memory, a refusal of the system) rather than the bytes."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


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
        raise UndecodableError(f"{path}: cannot be read: {error.strerror or error}") from error
    with quiet():
        return decode(content, side=side)


def read_content(path: Path) -> bytes:
    """Yield the bytes of a file; a pipe, a device (which may never end) or a huge file is an OSError."""
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if stat.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"a file of {stat.st_size / 2**30:.1f} GiB is no picture")
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise OSError(errno.ENOMEM, f"no memory for its {stat.st_size / 2**20:.0f} MiB") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Pillow and libtiff have to say on odd files inside the block.

    Filters belong to the whole process: this goes around a pool of threads, never inside of one.
    """
    logger = logging.getLogger("PIL")
    level, handlers = logger.level, [setter(None) for setter in _libtiff_setters()]
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for setter, handler in zip(_libtiff_setters(), handlers, strict=True):
            setter(handler)


@cache
def _libtiff_setters() -> tuple[Callable[[int | None], int | None], ...]:
    """Yield the functions that set libtiff's handlers, which print to stderr; none where they have no names."""
    found = []
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = library[name]
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            found.append(setter)
    return tuple(found)


_turn = threading.RLock()


def alone(is_large: bool) -> AbstractContextManager[Any]:
    """Yield a block that of all large things only one thread at a time is in."""
    return _turn if is_large else nullcontext()


def decode(content: bytes, *, side: int | None = None) -> Image.Image:
    """Yield the picture in the bytes of an image file; see `read_rgb`.

    Of a strip more than `LONGEST` times as long as wide the middle is kept, which is what views show.
    """
    if not content:
        raise UndecodableError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if side is not None:
                at_least = math.ceil(DRAFT * side)
                image.draft("RGB" if image.mode in ("RGB", "YCbCr") else None, (at_least, at_least))
            with alone(image.width * image.height > LARGE):
                image.load()
                return _smaller(_rgb(_middle(_upright(image))), side).convert("RGB")
    except DECODE_ERRORS as error:
        raise UndecodableError(_reason(error, content)) from error


def _middle(image: Image.Image) -> Image.Image:
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _smaller(image: Image.Image, side: int | None) -> Image.Image:
    if side is None or min(image.size) <= side:
        return image
    share = side / min(image.size)
    size = (max(side, round(image.width * share)), max(side, round(image.height * share)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; where that is damaged, leave it as viewers do."""
    with suppress(*DECODE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Yield a picture in RGB, a large one band by band: else it would lie in memory up to five times."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    span = _span(image) if image.mode in ("I", "F") else (0.0, 1.0)
    if image.width * image.height <= LARGE:
        return _flat(image, span)
    whole = Image.new("RGB", image.size)
    for box in _bands(image):
        whole.paste(_flat(image.crop(box), span), box)
    return whole


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _flat(image: Image.Image, span: tuple[float, float]) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        low, high = span
        scaled = (_values(image) - low) / max(high - low, 1e-12) * 255
        image = Image.fromarray(scaled.round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _span(image: Image.Image) -> tuple[float, float]:
    """Yield what is black and white in 32-bit whole numbers or floats: 0..1, 0..255, 0..65535, else their range."""
    ends = [(float(values.min()), float(values.max())) for values in (_values(image.crop(b)) for b in _bands(image))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low >= 0:
        low = 0.0
        steps = (255, 65535) if image.mode == "I" else (1, 255, 65535)
        high = float(next((step for step in steps if high <= step), high))
    return low, high


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=MOST, neginf=-MOST)


def _reason(error: BaseException, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        begins_as = next((form for form in FORMATS if _begins_as(content, form)), None)
        if begins_as is None:
            return "no image in a format that can be read"
        return f"damaged image: it begins as {begins_as} and breaks off, or is no such thing"
    if isinstance(error, MemoryError):
        return "no memory for its pixels"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    return f"damaged image: {str(error) or type(error).__name__}"


def _begins_as(content: bytes, form: str) -> bool:
    accepts = Image.OPEN[form][1]
    return accepts is not None and accepts(content[:16]) is True
