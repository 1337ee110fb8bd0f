"""Images that a Python program passes in: paths, Pillow images, arrays, tensors, bytes, open files, or many of these.

How each is to be read is certain, or it is refused. An image is taken at once, as a generator may reuse an array or
close a file when asked for the next. Letters: N images, C channels, H W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.bands import COLOURS, Bands
from finetune.data.asked_images import Images, ImageSource, asked_images
from finetune.data.image_column import AUTO
from finetune.errors import DataError
from finetune.images.decode import UndecodableError
from finetune.images.files import DECODE_ERRORS
from finetune.images.levels import deep_colour
from finetune.images.rasters import RasterError, checked
from finetune.types import OnEvent, ignore

if TYPE_CHECKING:
    from torch import Tensor

    OneImage = str | Path | Image.Image | NDArray[Any] | bytes | bytearray | memoryview | IO[bytes] | Tensor
    GivenImages = OneImage | Iterable[OneImage]

T = TypeVar("T")
EXPECTED = (
    "Give paths, Pillow images, NumPy arrays (H, W, 3) or (H, W) of uint8, tensors (3, H, W) of uint8 or of floats from"
    " 0 to 1, the bytes of image files, open files; or a list or a generator of them."
)


@dataclass(frozen=True, slots=True)
class _Given:
    """Images that are each turned into a source when their turn comes."""

    items: Iterable[Any]
    total: int | None
    column: str
    bands: Bands
    on_event: OnEvent

    def __iter__(self) -> Iterator[ImageSource]:
        number = 0
        for item in self.items:
            if isinstance(item, (str, Path)):
                sources: Iterable[ImageSource] = asked_images([item], column=self.column, on_event=self.on_event)
            else:
                sources = [_source(item, f"image {number}", self.bands)]
            for source in sources:
                yield source
                number += 1


def given_images(images: Any, *, column: str = AUTO, bands: Bands = COLOURS, on_event: OnEvent = ignore) -> Images:
    """Return images in order, from one or many of them as Python has them.

    An array (N, H, W, C) or a tensor (N, C, H, W) is N images. What has no name is called by its place, from 0 on.
    Of other `bands` than colours, arrays and tensors are what a .npy file with their numbers would be.

    Raises:
        DataError: it is none of these, or a path does not exist; of what is in a list or comes from a generator,
            when its turn comes.
    """
    if isinstance(images, (str, Path)):
        return asked_images([images], column=column, on_event=on_event)
    if _is_one(images):
        return _Given([images], 1, column, bands, on_event)
    if _is_tensor(images) or isinstance(images, np.ndarray):
        return _Given(images, len(images), column, bands, on_event)
    if isinstance(images, (list, tuple)) and images and all(isinstance(item, (str, Path)) for item in images):
        return asked_images(images, column=column, on_event=on_event)
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable) or isinstance(images, dict):
        raise DataError(f"{_shown(images)} is not an image or a list of images", hint=EXPECTED)
    if isinstance(images, Sized):
        if not len(images):
            raise DataError("no images: the list is empty", hint=EXPECTED)
        if not any(isinstance(item, (str, Path)) for item in images):
            return _Given(images, len(images), column, bands, on_event)
    return _Given(images, None, column, bands, on_event)


def is_stream(images: object) -> bool:
    """Return whether images come one by one and only once, as from a generator; an open file is one image."""
    return hasattr(images, "__next__") and not hasattr(images, "read")


def _is_one(images: Any) -> bool:
    if isinstance(images, (Image.Image, bytes, bytearray, memoryview)) or hasattr(images, "read"):
        return True
    return (_is_tensor(images) or isinstance(images, np.ndarray)) and images.ndim != 4


def _is_tensor(item: object) -> bool:
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported torch
    return torch is not None and isinstance(item, torch.Tensor)


def _source(item: Any, name: str, bands: Bands) -> ImageSource:
    """Return one image that is not a path.

    Raises:
        DataError: it cannot be told what it is.
    """
    if isinstance(item, (bytes, bytearray, memoryview)):
        return ImageSource(name, partial(bytes, bytes(item)))
    if isinstance(item, Image.Image):
        return _of_pillow(item, name)
    if isinstance(item, np.ndarray) or _is_tensor(item):
        if not bands.are_colours:
            return ImageSource(name, partial(_same, _channels(item, name)))
        pixels = _checked(item, name) if isinstance(item, np.ndarray) else _pixels(item, name)
        return ImageSource(name, partial(_same, Image.fromarray(pixels)))
    if hasattr(item, "read"):
        return _of_file(item, name)
    raise DataError(f"{name} is {_shown(item)}: not an image", hint=EXPECTED)


def _of_pillow(image: Image.Image, name: str) -> ImageSource:
    name = str(getattr(image, "filename", "") or name)
    if deep_colour(image):
        text = "16 bits a channel, of which Pillow keeps 8: give the path of its file, or its bytes"
        return ImageSource(name, partial(_fail, text))
    try:
        upright = ImageOps.exif_transpose(image)  # always a copy
    except DECODE_ERRORS:
        try:
            upright = image.copy()  # its EXIF is damaged: left as it is, as viewers do
        except DECODE_ERRORS as error:
            return ImageSource(name, partial(_fail, f"damaged image: {str(error) or type(error).__name__}"))
    return ImageSource(name, partial(_same, upright))


def _of_file(file: Any, name: str) -> ImageSource:
    """Return the image in an open file, from where it is.

    Raises:
        DataError: the file was opened as text.
    """
    given = getattr(file, "name", None)
    name = given if isinstance(given, str) and given else name
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        return ImageSource(name, partial(_fail, f"cannot be read: {error}"))
    if not isinstance(content, bytes):
        raise DataError(
            f"{name} is a file of {type(content).__name__}", hint='Open it in binary mode: open(path, "rb").'
        )
    return ImageSource(name, partial(bytes, content))


def _channels(item: NDArray[Any] | Tensor, name: str) -> NDArray[Any]:
    """Return a copy (H, W, C) of the numbers of an array (H, W, C) or (H, W), or of a tensor (C, H, W) or (H, W).

    Raises:
        DataError: it has another shape, more channels than an image, or numbers of another kind.
    """
    if isinstance(item, np.ndarray):
        numbers = item
    else:
        item = item.detach().cpu()
        numbers = (item.float() if item.dtype.is_floating_point else item).numpy()  # NumPy has no bfloat16
        numbers = numbers.transpose(1, 2, 0) if numbers.ndim == 3 else numbers
    try:
        return np.array(checked(numbers), order="C")
    except RasterError as error:
        first = "" if isinstance(item, np.ndarray) else " of a tensor (C, H, W)"
        raise DataError(f"{name}{first}: {error}", hint=EXPECTED) from error


def _checked(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a copy of the pixels (H, W) or (H, W, 3) of an array.

    Raises:
        DataError: it has another shape, or numbers of another kind.
    """
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    is_deep = array.ndim == 2 and array.dtype == np.uint16
    if array.dtype != np.uint8 and not is_deep:
        raise DataError(
            f"{name} is an array of {array.dtype}: which values are black and white is unknown",
            hint="Give uint8 from 0 to 255: (255 * array).round().astype('uint8') of floats from 0 to 1.",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] != 3) or 0 in shape:
        first = "Channels come last: array.transpose(1, 2, 0). " if array.ndim == 3 and shape[0] in (1, 3) else ""
        alpha = (
            "Of four channels: PIL.Image.frombytes with its mode (RGBA, CMYK) says what they are. "
            if shape[2:] == (4,)
            else ""
        )
        raise DataError(
            f"{name} is an array of the shape {shape}, and an image is (H, W, 3) or (H, W)",
            hint=f"{first}{alpha}{EXPECTED}",
        )
    return np.array(array, order="C")


def _pixels(tensor: Tensor, name: str) -> NDArray[Any]:
    """Return a copy of the pixels (H, W) or (H, W, 3) of a tensor (C, H, W) or (H, W).

    Raises:
        DataError: it has another shape, or numbers that are neither uint8 nor floats from 0 to 1.
    """
    shape = tuple(tensor.shape)
    is_last = len(shape) == 3 and shape[2] in (1, 3)
    if len(shape) not in (2, 3) or (len(shape) == 3 and (shape[0] not in (1, 3) or is_last)) or 0 in shape:
        way = "tensor.permute(2, 0, 1) has them there. " if is_last else ""
        raise DataError(
            f"{name} is a tensor of the shape {shape}, and an image is (3, H, W), (1, H, W) or (H, W)",
            hint=f"Channels come first. {way}",
        )
    array: NDArray[Any] = tensor.detach().cpu().float().numpy()  # NumPy has no bfloat16; float32 holds every uint8
    kind = str(tensor.dtype).removeprefix("torch.")
    if not (tensor.dtype.is_floating_point or kind == "uint8"):
        raise DataError(f"{name} is a tensor of {kind}", hint="Give uint8 from 0 to 255, or floats from 0 to 1.")
    if kind != "uint8":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{name} is a tensor of floats from {low:g} to {high:g}, and pixels lie between 0 and 1",
                hint="Was it already normalised? The model does that itself: give the original.",
            )
        array = (255 * array).round()
    array = array.astype(np.uint8)
    if array.ndim == 3:
        array = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
    return np.ascontiguousarray(array)


def _fail(reason: str) -> bytes:
    raise UndecodableError(reason)


def _same(image: T) -> T:
    return image


def _shown(item: object) -> str:
    name = type(item).__name__
    return f"{name!r}" if item is None else f"of the type {name!r}"
