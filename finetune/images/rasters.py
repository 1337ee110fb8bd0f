"""Files that hold an array of numbers rather than a picture: .npy, and TIFF of any number of bands.

Letters: H W pixels, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from finetune.bands import MOST_CHANNELS

NPY = b"\x93NUMPY"
BANDS_TAG = 277  # the tag of a TIFF for samples per pixel
ORIENTATION_TAG = 274
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # of an array, by its orientation
    1: lambda array: array,
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: array[::-1].swapaxes(0, 1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: array[:, ::-1].swapaxes(0, 1),
}
MOST_NUMBERS = 2**28  # of an image: as float32 they take 1 GiB
HEADERS: dict[tuple[int, int], Callable[[Any], tuple[tuple[int, ...], bool, Any]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class RasterError(ValueError):
    """When bytes hold no array that could be an image; the message says why."""


def is_npy(content: bytes) -> bool:
    """Return whether bytes begin as a .npy file."""
    return content.startswith(NPY)


def read_npy(content: bytes) -> NDArray[Any]:
    """Return the array (H, W, C) in the bytes of a .npy file, as a view of them: nothing is unpickled or copied.

    Raises:
        RasterError: it has another shape, no real numbers, a number that is not finite, or breaks off.
    """
    stream = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = HEADERS[np.lib.format.read_magic(stream)](stream)
        start, count = stream.tell(), prod(shape)
    except Exception as error:  # whatever NumPy finds in a header
        raise RasterError(f"damaged .npy file: {str(error) or type(error).__name__}") from error
    if dtype.kind not in "uif":
        raise RasterError(f"a .npy file of {dtype}: an image holds whole numbers or floats (uint8, uint16, float32)")
    if len(content) - start != count * dtype.itemsize:
        raise RasterError(f"damaged .npy file: it has {len(content) - start:,} of {count * dtype.itemsize:,} bytes")
    array = np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")
    return checked(array)


def bands_of_tiff(content: bytes) -> int | None:
    """Return how many bands a TIFF says that it has, Pillow willing or not; None where it is no TIFF."""
    if content[:2] not in (b"II", b"MM"):
        return None
    with suppress(Exception):
        header = content[: 16 if content[2:3] == b"\x2b" or content[3:4] == b"\x2b" else 8]
        directory, stream = TiffImagePlugin.ImageFileDirectory_v2(header), io.BytesIO(content)
        stream.seek(directory.next)
        directory.load(stream)
        return int(directory.get(BANDS_TAG, 1))
    return None


def read_tiff(content: bytes) -> NDArray[Any]:
    """Return the array (H, W, C) in the bytes of a TIFF, upright, whose channels are its bands, or else its pages.

    Raises:
        RasterError: there is none, or tifffile is not installed.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            kept = {name: size for name, size in sizes.items() if size > 1 or name in "YX"}
            if not {"Y", "X"} <= kept.keys() or len(kept) > 3:
                raise RasterError(f"a TIFF of the shape {series.shape} ({series.axes}): an image has one or more bands")
            if series.size > MOST_NUMBERS:
                raise RasterError(_too_large(series.shape))
            found: NDArray[Any] = series.asarray().reshape(list(kept.values()))
            orientation = series.keyframe.tags.get(ORIENTATION_TAG)
            turned = TURNS.get(orientation.value if orientation else 1, TURNS[1])
    except RasterError:
        raise
    except Exception as error:  # whatever tifffile finds in a file
        raise RasterError(f"damaged image: {(str(error) or repr(error)).splitlines()[0]}") from error
    order = ["Y", "X", *(name for name in kept if name not in "YX")]
    return turned(checked(found.transpose([list(kept).index(name) for name in order])))


def _tifffile() -> ModuleType:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        text = "its bands, or pages, are read by tifffile: pip install 'finetune[tiff]', or save it as .npy (H, W, C)"
        raise RasterError(text) from error
    module: ModuleType = tifffile
    return module


def checked(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array (H, W) or (H, W, C) of an image's numbers as (H, W, C).

    Raises:
        RasterError: it has another shape, too many channels or numbers, or some that are not real and finite.
    """
    shape = tuple(array.shape)
    if array.dtype.kind not in "uif":
        raise RasterError(f"numbers of the kind {array.dtype}: an image holds whole numbers or floats")
    if array.ndim not in (2, 3) or 0 in shape:
        raise RasterError(f"an array of the shape {shape}, and an image is (H, W) or (H, W, C)")
    if array.ndim == 3 and shape[2] > MOST_CHANNELS:
        first = ": channels stand last" if shape[0] <= MOST_CHANNELS else ""
        most = f"an image (H, W, C) has at most {MOST_CHANNELS} channels"
        raise RasterError(f"an array of the shape {shape}, and {most}{first}")
    if array.size > MOST_NUMBERS:
        raise RasterError(_too_large(shape))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RasterError("numbers that are not finite (NaN or infinite): put one in their place")
    return array[:, :, None] if array.ndim == 2 else array


def _too_large(shape: tuple[int, ...]) -> str:
    return f"too many numbers: the shape {shape}, and at most {MOST_NUMBERS:,} are read"
