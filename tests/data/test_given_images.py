"""Images as a Python program has them: each is read as what it certainly is, or refused with the way out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.bands import Bands
from finetune.data.given_images import given_images, is_stream
from finetune.errors import DataError
from finetune.images.decode import UndecodableError, decode, examine, examine_open

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = PIXELS[:, :, 0]


def png(pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def seen(images: Any) -> list[np.ndarray]:
    found = []
    for source in given_images(images):
        content = source.read()
        whole = decode(content) if isinstance(content, bytes) else examine_open(content, lambda image: image).content
        found.append(np.asarray(whole))
    return found


def tensor(pixels: np.ndarray = PIXELS) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        np.asfortranarray(PIXELS),
        Image.fromarray(PIXELS),
        Image.open(io.BytesIO(png())),
        png(),
        bytearray(png()),
        memoryview(png()),
        io.BytesIO(png()),
        tensor(),
        tensor().float() / 255,
        tensor().double() / 255,
        (tensor().float() / 255).requires_grad_(),
    ],
    ids=lambda image: type(image).__name__,
)
def test_one_image_in_every_form_has_the_same_pixels(image: Any) -> None:
    (found,) = seen(image)
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(("bands", "channels"), [(Bands(6, "full"), 6), (Bands(3, "full"), 3), (Bands(1, "full"), 1)])
def test_of_a_stack_an_array_and_a_tensor_are_what_a_file_of_their_numbers_is(
    dtype: str, bands: Bands, channels: int
) -> None:
    numbers = np.random.default_rng(0).integers(0, 200, (5, 7, channels)).astype(dtype)
    whole = torch.from_numpy(numbers.copy()).permute(2, 0, 1)
    forms = [numbers, np.asfortranarray(numbers), whole, torch.stack([whole]), numbers[None]]
    forms += [numbers[:, :, 0], whole[0]] if channels == 1 else []
    stream = io.BytesIO()
    np.save(stream, numbers)
    expected = examine(stream.getvalue(), lambda stack: stack.numbers(), bands=bands).content
    for form in forms:
        (source,) = given_images(form, bands=bands)
        found = examine_open(source.read(), lambda stack: stack.numbers(), bands=bands).content
        assert np.array_equal(found, expected)


def test_four_channels_of_bytes_are_taken_as_they_are() -> None:
    four = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    for form in (four, torch.from_numpy(four.copy()).permute(2, 0, 1)):
        (source,) = given_images(form, bands=Bands(4))
        assert np.array_equal(examine_open(source.read(), np.asarray, bands=Bands(4)).content, four)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 6), np.nan), "image 0: numbers that are not finite"),
        (np.zeros((6, 4, 100), np.uint8), "channels stand last"),
        (torch.zeros(100, 4, 6), r"image 0 of a tensor \(C, H, W\): .* at most 64"),
        (np.zeros((4, 4, 6), bool), "of the kind bool"),
        (torch.zeros(4), r"the shape \(4,\)"),
    ],
)
def test_what_is_no_stack_says_why(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(given_images(image, bands=Bands(6, "full")))


@pytest.mark.parametrize("image", [GREY, GREY[:, :, None], torch.from_numpy(GREY.copy()), tensor()[:1], png(GREY)])
def test_grey_is_grey(image: Any) -> None:
    (found,) = seen(image)
    assert np.array_equal(found, np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize(
    ("images", "total"),
    [
        ([PIXELS, tensor()], 2),
        ((png(), PIXELS), 2),
        (np.stack([PIXELS, PIXELS]), 2),
        (torch.stack([tensor(), tensor()]), 2),
        ((image for image in (PIXELS, png())), None),
        ({"a": PIXELS, "b": PIXELS}.values(), 2),
    ],
)
def test_many_images_come_in_order(images: Any, total: int | None) -> None:
    assert given_images(images).total == total
    assert all(np.array_equal(found, PIXELS) for found in seen(images))


def test_paths_stand_beside_other_images_and_all_have_names(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("d/1.png", "d/2.png", "3.png"):
        (tmp_path / name).write_bytes(png())
    with (tmp_path / "3.png").open("rb") as file:
        images = [tmp_path / "d", PIXELS, str(tmp_path / "3.png"), Image.open(tmp_path / "3.png"), file, png()]
        names = [source.name for source in given_images(images)]
    last = str(tmp_path / "3.png")
    assert names == [str(tmp_path / "d/1.png"), str(tmp_path / "d/2.png"), "image 2", last, last, last, "image 6"]
    assert given_images([tmp_path / "d", tmp_path / "3.png"]).total == 3


def test_what_a_generator_reuses_or_closes_was_taken_before(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())

    def stream() -> Iterator[Any]:
        frame = PIXELS.copy()
        yield frame
        frame[:] = 0
        frame = torch.from_numpy(PIXELS.copy())
        yield frame.permute(2, 0, 1)
        frame.zero_()
        with Image.open(tmp_path / "1.png") as image:
            yield image
        with (tmp_path / "1.png").open("rb") as file:
            yield file

    sources = list(given_images(stream()))
    for source in sources:
        content = source.read()
        assert np.array_equal(np.asarray(decode(content) if isinstance(content, bytes) else content), PIXELS)


@pytest.mark.parametrize(
    ("image", "message", "hint"),
    [
        (PIXELS.astype(np.float32), "an array of float32", r"\* array"),
        (PIXELS.astype(np.int64), "an array of int64", "uint8"),
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 5, 7\)", "Channels come last"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)", "RGBA, CMYK"),
        (np.zeros(4, np.uint8), r"shape \(4,\)", "Give paths"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)", "Give paths"),
        (np.array("text"), "an array of <U4", "uint8"),
        (torch.from_numpy(PIXELS), r"shape \(5, 7, 3\)", "permute"),
        (torch.zeros(3, 9, 3), r"shape \(3, 9, 3\)", "permute"),
        (tensor().float(), "floats from 0 to 248", "normalised"),
        (tensor().float() / 127 - 1, "floats from -1", "normalised"),
        (torch.full((3, 4, 4), float("nan")), "floats from nan", "normalised"),
        (tensor().int(), "a tensor of int32", "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "a tensor of bool", "uint8"),
        (io.StringIO("text"), "a file of str", "rb"),
        (None, "'NoneType'", "Give paths"),
        (7, "'int'", "Give paths"),
        ([None], "image 0 is 'NoneType'|image 0 is None", "Give paths"),
        ([[PIXELS]], "image 0 is of the type 'list'", "Give paths"),
        ({"a": PIXELS}, "'dict'", "Give paths"),
        ([], "no images: the list is empty", "Give paths"),
    ],
)
def test_what_is_doubtful_is_refused_with_the_way_out(image: Any, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(given_images(image))
    assert hint.replace("\\", "") in caught.value.hint


@pytest.mark.parametrize("broken", [png()[:60], b"", b"no image"])
def test_what_cannot_be_decoded_is_a_problem_in_its_place(broken: bytes, tmp_path: Path) -> None:
    (source,) = given_images(broken)
    with pytest.raises(UndecodableError):
        decode(source.read())
    if broken[:4] == png()[:4]:
        (source,) = given_images([Image.open(io.BytesIO(broken))])
        with pytest.raises(UndecodableError, match="damaged image"):
            source.read()
    closed = io.BytesIO(png())
    closed.close()
    (source,) = given_images([closed])
    with pytest.raises(UndecodableError, match="closed file"):
        source.read()


def test_a_pillow_image_is_turned_scaled_and_laid_on_white_as_its_file_would_be(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 100)
    clear = Image.fromarray(np.dstack([PIXELS, GREY]), "RGBA")
    for name, image, more in (
        ("turned.png", Image.fromarray(PIXELS), {"exif": exif}),
        ("turned.tif", Image.fromarray(PIXELS), {"exif": exif}),
        ("deep.png", deep, {}),
        ("clear.png", clear, {}),
        ("palette.png", Image.fromarray(PIXELS).quantize(8), {}),
        ("cmyk.tif", Image.fromarray(PIXELS).convert("CMYK"), {}),
    ):
        image.save(tmp_path / name, **more)
        of_file, of_image = seen([tmp_path / name, Image.open(tmp_path / name)])
        assert np.array_equal(of_file, of_image), name


def test_a_generator_is_a_stream_and_an_open_file_is_one_image() -> None:
    assert is_stream(image for image in [PIXELS]) and is_stream(iter([PIXELS]))
    assert not any(map(is_stream, ([PIXELS], PIXELS, io.BytesIO(), "a.png", Path("a.png"))))
