"""Which files are images: their names, how their bytes begin, and what reading them may raise."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path
from stat import S_ISREG

from PIL import Image

from finetune.images.rasters import is_npy

LARGEST_FILE = 2**30  # bytes; as many pixels as Pillow takes, at 16 bits, are hardly more

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads MPO as JPEG
FORMS = (*FORMATS, "NPY")  # that can be read

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


def is_image_name(name: str) -> bool:
    """Return whether a file should be an image, by its name without folders."""
    dot = name.rfind(".")  # `Path(name).suffix` takes ten times as long, and folders hold a million names
    return 0 < dot < len(name) - 1 and name[dot:].lower() in EXTENSIONS


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


def form_of(content: bytes) -> str:
    """Return the format of the bytes of an image that could be decoded, one of `FORMS`."""
    return next(form for form in FORMS if begins_as(content, form))


def begins_as(content: bytes, form: str) -> bool:
    """Return whether bytes begin as an image file in one of the `FORMS`."""
    if form == "NPY":
        return is_npy(content)
    accepts = Image.OPEN[form][1]
    return accepts is not None and accepts(content[:16]) is True
