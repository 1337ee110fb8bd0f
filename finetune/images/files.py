"""Image files: their bytes, their format, and what reading them may raise."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from pathlib import Path
from stat import S_ISREG

from PIL import Image

from finetune.images.names import HAS_AVIF, LARGEST_FILE
from finetune.images.rasters import is_npy
from finetune.images.shards import in_shard, member_stamp, read_member

ALWAYS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow reads MPO as JPEG
FORMATS = (*ALWAYS, "AVIF") if HAS_AVIF else ALWAYS
FORMS = (*ALWAYS, "NPY", *FORMATS[len(ALWAYS) :])  # that can be read; what is kept of images names one by its place
AVIF, HEIC = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"}  # brands that files name
LONGEST_BRANDS = 256  # bytes in which they are looked for

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


def read_content(path: Path) -> bytes:
    """Return the bytes of a file, or of an image in a shard; a pipe, a device or a huge file is an OSError."""
    inside = in_shard(path)
    if inside is not None:
        return read_member(*inside)
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if stat.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"a file of {stat.st_size / 2**30:.1f} GiB is not an image")
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise OSError(errno.ENOMEM, f"no memory for its {stat.st_size / 2**20:.0f} MiB") from error


def openable(path: Path) -> Path | io.BytesIO:
    """Return what other libraries can open: an image's file, or its bytes if it is in a shard.

    Raises:
        OSError: it is in a shard, and cannot be read.
    """
    return path if in_shard(path) is None else io.BytesIO(read_content(path))


def stamp_of(path: Path) -> tuple[int, int]:
    """Return the size of a file, or of an image in a shard, and a number that changes with it.

    Raises:
        OSError: it is not there.
    """
    inside = in_shard(path)
    if inside is not None:
        return member_stamp(*inside)
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def form_of(content: bytes) -> str:
    """Return the format of the bytes of an image that could be decoded, one of `FORMS`."""
    return next(form for form in FORMS if begins_as(content, form))


def unread_form(content: bytes) -> str:
    """Return the format of bytes, AVIF or HEIC, which Pillow cannot read as it is built; empty for others."""
    length = int.from_bytes(content[:4])
    brands = {content[start : start + 4] for start in range(8, min(length, LONGEST_BRANDS), 4)}
    if content[4:8] != b"ftyp":
        return ""
    if brands & AVIF:
        return "" if HAS_AVIF else "AVIF"
    return "HEIC" if brands & HEIC else ""


def begins_as(content: bytes, form: str) -> bool:
    """Return whether bytes begin as an image file in one of the `FORMS`."""
    if form == "NPY":
        return is_npy(content)
    accepts = Image.OPEN[form][1]
    return accepts is not None and accepts(content[:16]) is True
