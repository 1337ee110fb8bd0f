"""An image file as the RGB image that a person sees.

Grey, palette, alpha (on white), CMYK and EXIF-rotated files, numbers deeper than 8 bits (see `levels`), and
the first of several pages or frames. The same path serves the scan, training, evaluation and prediction.
Whatever the bytes are, they cost one image or one `UndecodableError`, and memory for one large image at a time.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, Generic, TypeVar

from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, _imaging

from finetune.errors import DataError
from finetune.images.four import of_four, why_not_four
from finetune.images.levels import (
    Range,
    Span,
    bands,
    colour_levels,
    deep_colour,
    grey_levels,
    is_deep,
    range_of,
    read_lower_bytes,
    span_of,
    span_of_colours,
    unfit,
)
from finetune.types import LONGEST
from finetune.wording import counted

DECODE_VERSION = 4  # goes up when the same file begins to give another image

DRAFT = 1.6  # reduced decoding below this changes the image visibly; above, by less than a level
LARGE = 2**24  # pixels of an image that is decoded while no other large one is
BANDS_TAG = 277  # the tag of a TIFF for samples per pixel
LARGEST_FILE = 2**30  # bytes; as many pixels as Pillow takes, at 16 bits, are hardly more

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads MPO as JPEG

T = TypeVar("T")

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
        """Whether the cause is the machine (no memory, a refusal of the system) rather than the bytes."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def is_image_name(name: str) -> bool:
    """Return whether a file should be an image, by its name without folders."""
    dot = name.rfind(".")  # `Path(name).suffix` takes ten times as long, and folders hold a million names
    return 0 < dot < len(name) - 1 and name[dot:].lower() in EXTENSIONS


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """What was made of an image, what the numbers of a deep one span, and what of the file is not in the image."""

    content: T
    span: Span | None = None
    remark: str = ""


def read_rgb(path: Path, *, side: int | None = None, value_range: Range | None = None) -> Image.Image:
    """Return the image of a file.

    With `side`, an image whose shorter side has more pixels is made smaller until it has that many, a JPEG
    decoded at reduced scale before, as long as that leaves `DRAFT` times as many: for looking at, not for
    a network. `value_range` is what is black and white in an image deeper than 8 bits.

    Raises:
        UndecodableError: the file is missing, empty, truncated, damaged, too large or no image.
    """
    return read(path, side=side, value_range=value_range).content


def read(
    path: Path, *, side: int | None = None, value_range: Range | None = None, bands: int = 3
) -> Decoded[Image.Image]:
    """Return the image of a file, and what is to be said of the file; see `read_rgb` and `examine`.

    Raises:
        UndecodableError: the file is missing, empty, truncated, damaged, too large or no image.
    """
    try:
        content = read_content(path)
    except OSError as error:
        raise UndecodableError(f"{path}: cannot be read: {error.strerror or error}") from error
    with quiet():
        return examine(content, lambda image: image, side=side, value_range=value_range, num_bands=bands)


def read_content(path: Path) -> bytes:
    """Return the bytes of a file; a pipe, a device (which may never end) or a huge file is an OSError."""
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if stat.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"a file of {stat.st_size / 2**30:.1f} GiB is no image")
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise OSError(errno.ENOMEM, f"no memory for its {stat.st_size / 2**20:.0f} MiB") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Pillow and libtiff have to say on odd files inside the block.

    Filters belong to the whole process: with several blocks at a time, in threads too, the first sets them and the
    last puts them back.
    """
    with _QUIET.lock:
        if not _QUIET.depth:
            _QUIET.stack.enter_context(_silence())
        _QUIET.depth += 1
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.depth -= 1
            if not _QUIET.depth:
                _QUIET.stack.close()


class _Quiet:
    """How many blocks want silence, and what ends it."""

    def __init__(self) -> None:
        self.lock, self.depth, self.stack = threading.Lock(), 0, ExitStack()


_QUIET = _Quiet()


@contextmanager
def _silence() -> Iterator[None]:
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
    """Return the functions that set libtiff's handlers, which print to stderr; none where they have no names."""
    setters = []
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = library[name]
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setters.append(setter)
    return tuple(setters)


_turn = threading.RLock()


def alone(is_large: bool) -> AbstractContextManager[Any]:
    """Return a context manager that only one thread at a time is inside of, where what it decodes is large."""
    return _turn if is_large else nullcontext()


def decode(content: bytes, *, side: int | None = None, value_range: Range | None = None) -> Image.Image:
    """Return the image in the bytes of an image file; see `read_rgb`."""
    return examine(content, lambda image: image, side=side, value_range=value_range).content


def examine(
    content: bytes,
    make: Callable[[Image.Image], T],
    *,
    side: int | None = None,
    value_range: Range | None = None,
    num_bands: int = 3,
) -> Decoded[T]:
    """Return what `make` makes of the image in the bytes of an image file, and what is to be said of the file.

    Of 3 bands it is an RGB image, of 4 as `four.of_four` has it. No other thread holds a large image meanwhile. A
    strip more than `LONGEST` times as long as wide is cut to its middle, which is what views show. Without a
    `value_range`, black and white of a deep image are what `levels.range_of` makes of it alone.

    Raises:
        UndecodableError: there is none.
    """
    if not content:
        raise UndecodableError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if num_bands == 4 and (reason := why_not_four(image, _num_bands(image))):
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


def _remark(image: Image.Image) -> str:
    """Return what of a file will not be seen, in the words of a note; empty where all is.

    Raises:
        UndecodableError: a TIFF has bands of which nobody knows what they show.
    """
    num_bands = _num_bands(image)
    if num_bands not in (1, 2, 3, 4):
        raise UndecodableError(_too_many_bands(num_bands))
    if num_bands == 4 and image.mode == "RGB":
        return "four bands of which the fourth is no transparency; the first three are used as red, green and blue"
    # The second image of an MPO is a preview or the other eye's view, and counting the frames of a GIF reads it all.
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "is_animated", False):
        return "several pages or frames; the first is used"
    return ""


def _num_bands(image: Image.Image) -> int:
    return int(image.tag_v2.get(BANDS_TAG, 1)) if isinstance(image, TiffImagePlugin.TiffImageFile) else 3


def _too_many_bands(num_bands: int) -> str:
    return f"{num_bands} bands: one is read as grey, three as colour, four as colour with transparency (or CMYK)"


def _levelled(image: Image.Image, content: bytes, value_range: Range | None) -> tuple[Image.Image, Span | None]:
    """Return an image upright, with 8 bits a channel, and what its numbers spanned where they were deeper."""
    raw = deep_colour(image)
    image.load()
    upright = _middle(_upright(image))
    if raw is None and not is_deep(upright):
        return upright, None
    if raw is None:
        span = span_of(upright)
        return grey_levels(upright, _fitting(span, value_range)), span
    with Image.open(io.BytesIO(content), formats=FORMATS) as again:
        lower = _middle(_upright(again)) if read_lower_bytes(again, raw) else None
    span = span_of_colours(upright, lower)
    return colour_levels(upright, lower, _fitting(span, value_range)), span


def _fitting(span: Span, value_range: Range | None) -> Range:
    """Return the range of values of an image: the one given, or its own.

    Raises:
        UndecodableError: it does not fit.
    """
    between = value_range or range_of(span)
    if reason := unfit(span, between):
        raise UndecodableError(reason)
    return between


def _middle(image: Image.Image) -> Image.Image:
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def smaller(image: Image.Image, side: int | None) -> Image.Image:
    """Return an image whose shorter side has at most `side` pixels."""
    if side is None or min(image.size) <= side:
        return image
    share = side / min(image.size)
    size = (max(side, round(image.width * share)), max(side, round(image.height * share)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says; where that is damaged, as it is, as viewers do."""
    with suppress(*DECODE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, a large one band by band: otherwise it would be in memory up to five times."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.width * image.height <= LARGE:
        return _flat(image)
    whole = Image.new("RGB", image.size)
    for box in bands(image):
        whole.paste(_flat(image.crop(box)), box)
    return whole


def _flat(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: BaseException, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        begins_as = next((form for form in FORMATS if _begins_as(content, form)), None)
        if begins_as is None:
            return "no image in a format that can be read"
        if begins_as == "TIFF" and (num_bands := _bands_of_tiff(content)) not in (None, 1, 2, 3, 4):
            return _too_many_bands(num_bands)
        return f"damaged image: it begins as {begins_as} and breaks off, or is no such thing"
    if isinstance(error, MemoryError):
        return "no memory for its pixels"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    return f"damaged image: {str(error) or type(error).__name__}"


def _bands_of_tiff(content: bytes) -> int | None:
    """Return how many bands a TIFF says that it has, where Pillow itself refuses to open it."""
    with suppress(*DECODE_ERRORS):
        header = content[: 16 if content[2:3] == b"\x2b" or content[3:4] == b"\x2b" else 8]
        directory, stream = TiffImagePlugin.ImageFileDirectory_v2(header), io.BytesIO(content)
        stream.seek(directory.next)
        directory.load(stream)
        return int(directory[BANDS_TAG])
    return None


def _begins_as(content: bytes, form: str) -> bool:
    accepts = Image.OPEN[form][1]
    return accepts is not None and accepts(content[:16]) is True


def remarks_of(files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield sentences on what is not seen of some files, from their names and remarks, each with an example."""
    kinds: dict[str, list[str]] = {}
    for file, remark in files:
        if remark:
            kinds.setdefault(remark, []).append(file)
    for remark, named in kinds.items():
        yield f"{counted(len(named), 'image has', 'images have')} {remark}, e.g. {named[0]}"
