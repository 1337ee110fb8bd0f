"""Arrays in files, of any number of channels, are read without a loss, and bad ones cost one clear error."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from finetune.bands import Bands
from finetune.exports.client import input_of
from finetune.exports.described import preprocessing_facts
from finetune.images.decode import UndecodableError, decode, examine, read, read_array, size_of
from finetune.images.levels import Span
from finetune.images.rasters import NPY
from finetune.images.stacks import Stack
from finetune.images.thumbnails import look
from finetune.images.transforms import augmented_view, normalise, plain_view
from finetune.randomness import forked
from finetune.sections import AugmentSection
from finetune.types import Preprocessing
from tests.corpus import deep_png, tiff_of_bands

RNG = np.random.default_rng(0)
SIX = RNG.integers(0, 2**16, (40, 50, 6)).astype(np.uint16)


def npy(array: np.ndarray, **more: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def stack(content: bytes, **more: Any) -> Stack:
    found = examine(content, lambda image: image, **more).content
    assert isinstance(found, Stack)
    return found


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", "<f4", ">f8", "int16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_number_of_an_array_is_kept(dtype: str, order: str) -> None:
    array = np.asarray(RNG.integers(0, 200, (7, 9, 6)), dtype=dtype, order=order)  # type: ignore[call-overload]
    made = stack(npy(array), bands=Bands(6, "full"), value_range=None if dtype == "uint8" else (0, 255))
    assert np.array_equal(made.numbers(), array.astype(np.float32))


def test_sixteen_bits_come_back_from_a_stack_and_its_span_is_told() -> None:
    found = examine(npy(SIX), lambda image: image.numbers(), bands=Bands(6, "full"))
    assert found.span == Span(float(SIX.min()), float(SIX.max()))
    assert np.array_equal((found.content.astype(np.float64) * 257).round(), SIX)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(SIX)[:-2], "it has 23,998 of 24,000 bytes"),
        (npy(SIX)[:40], "damaged .npy file"),
        (npy(SIX) + b"\0", "bytes"),
        (NPY + b"\x09\x09" + bytes(40), "damaged .npy file"),
        (npy(np.array([{}, {}], dtype=object), allow_pickle=True), "of object"),
        (npy(np.zeros((4, 4), dtype=bool)), "of bool"),
        (npy(np.zeros((4, 4), dtype=complex)), "of complex128"),
        (npy(np.full((4, 4, 6), np.nan, np.float32)), "not finite"),
        (npy(np.zeros(4)), r"the shape \(4,\)"),
        (npy(np.zeros((0, 4))), r"the shape \(0, 4\)"),
        (npy(np.zeros((6, 4, 100), np.uint8)), "channels stand last"),
        (npy(np.zeros((4, 4, 5), np.uint8)), "5 channels, where 6 are read"),
    ],
)
def test_what_is_no_image_of_the_channels_asked_for_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        examine(content, lambda image: image, bands=Bands(6, "full"))


def test_a_header_that_promises_more_than_there_is_costs_no_memory() -> None:
    header = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }        ", b"(999999, 9999), }", 1)
    with pytest.raises(UndecodableError, match="of 9,998,990,001 bytes"):
        examine(header, lambda image: image, bands=Bands(1, "full"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_arrays_are_images_or_cost_one_error(data: st.DataObject) -> None:
    content = bytearray(npy(SIX[:3, :4]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        stack(bytes(content[: data.draw(st.integers(0, len(content)))]), bands=Bands(6, "full"))
    except UndecodableError as error:
        assert error.message


def test_arrays_of_one_and_three_channels_are_pictures_too() -> None:
    grey, colours = RNG.integers(0, 256, (8, 9), np.uint8), RNG.integers(0, 256, (8, 9, 3), np.uint8)
    assert np.array_equal(np.asarray(examine(npy(grey), np.asarray).content)[..., 1], grey)
    assert np.array_equal(examine(npy(colours), np.asarray).content, colours)
    deep = examine(npy(colours.astype(np.uint16) * 16), np.asarray, value_range=(0, 255 * 16))
    assert np.array_equal(deep.content, colours)
    assert np.array_equal(np.asarray(decode(npy(SIX), value_range=(0, 65535))), np.round(SIX[..., :3] / 257))


def test_a_picture_in_full_depth_keeps_all_bits_of_its_channels(tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (9, 8, 4)).astype(np.uint16)
    for channels in (3, 4):
        content = deep_png(values[..., :channels])
        made = stack(content, bands=Bands(channels, "full"), value_range=(0, 65535)).numbers()
        assert np.array_equal((made.astype(np.float64) * 257).round(), values[..., :channels])
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_array(tmp_path / "grey.png", Bands(1, "full"))[..., 0], values[..., 0])
    assert size_of(tmp_path / "grey.png") == (8, 9)
    with pytest.raises(UndecodableError, match="3 channels, where 1 is read"):
        stack(deep_png(values[..., :3]), bands=Bands(1, "full"))


@pytest.mark.parametrize("layout", ["bands", "planes", "pages"])
def test_a_tiff_of_many_bands_is_read_by_tifffile(layout: str) -> None:
    tifffile, stream = pytest.importorskip("tifffile"), io.BytesIO()
    if layout == "bands":
        tifffile.imwrite(stream, SIX, photometric="minisblack", planarconfig="contig")
    else:
        more = {"planarconfig": "separate"} if layout == "planes" else {}
        tifffile.imwrite(stream, SIX.transpose(2, 0, 1), photometric="minisblack", **more)
    made = stack(stream.getvalue(), bands=Bands(6, "full"), value_range=(0, 65535)).numbers()
    assert np.array_equal((made.astype(np.float64) * 257).round(), SIX)
    with pytest.raises(UndecodableError):
        examine(stream.getvalue()[:-9000], lambda image: image, bands=Bands(6, "full"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("layout", ["bands", "pages"])
def test_a_tiff_of_many_bands_is_turned_as_it_says(orientation: int, layout: str) -> None:
    tifffile, stream, small = pytest.importorskip("tifffile"), io.BytesIO(), SIX.astype(np.uint8)
    array, plan = (small, {"planarconfig": "contig"}) if layout == "bands" else (small.transpose(2, 0, 1), {})
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(stream, array, photometric="minisblack", extratags=[tag], **plan)
    plain = Image.fromarray(small[:, :, :3])
    plain.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    made = stack(stream.getvalue(), bands=Bands(6, "full")).numbers()
    assert np.array_equal(made[:, :, :3], expected) and made.shape[2] == 6


def test_without_tifffile_a_tiff_of_many_bands_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UndecodableError, match=r"pip install 'finetune\[tiff\]', or save it as \.npy"):
        examine(tiff_of_bands(6), lambda image: image, bands=Bands(6, "full"))


def preprocessing(crop_mode: str = "center", **more: Any) -> Preprocessing:
    mean = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    return Preprocessing((32, 32), mean, (0.2,) * 6, crop_mode=crop_mode, channels=6, depth="full", **more)


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("value_range", [None, (0.0, 65535.0), (100.0, 4095.0)])
def test_a_client_cuts_the_same_stack(tmp_path: Path, crop_mode: str, value_range: Any) -> None:
    np.save(tmp_path / "a.npy", SIX)
    own = preprocessing(crop_mode, value_range=value_range)
    ours = read(tmp_path / "a.npy", value_range=value_range, bands=own.bands).content
    made = normalise(plain_view(own)(ours)[None], own)[0].numpy()
    theirs = input_of(tmp_path / "a.npy", json.loads(json.dumps(preprocessing_facts(own))))
    assert made.shape == theirs.shape == (6, 32, 32) and np.abs(made - theirs).max() < 1e-5


def test_all_channels_vary_alike_and_keep_their_numbers() -> None:
    plane = RNG.integers(0, 2**16, (60, 70, 1)).astype(np.uint16)
    image = stack(npy(plane.repeat(6, axis=2)), bands=Bands(6, "full"))
    section = AugmentSection(rotate=20.0, erase=1.0, vertical_flip=0.5)
    with forked(3):
        shown = augmented_view(preprocessing(), section)(image)
    assert shown.shape == (6, 32, 32) and shown.dtype == torch.float32
    inside = (shown == shown[:1]).all(dim=0)
    assert 0.3 < float(inside.float().mean()) < 1
    outside = shown[:, ~inside].T
    assert [round(255 * part) for part in preprocessing().mean] in outside.round().tolist()
    assert float((shown[:, inside] % 1).abs().max()) > 0  # not rounded to levels
    with forked(4):
        assert not torch.equal(augmented_view(preprocessing(), section)(image), shown)


def test_stacks_that_differ_in_the_last_channel_alone_are_no_copies() -> None:
    other = SIX.copy()
    other[0, 0, 5] ^= 1
    looks = [look(npy(array), value_range=(0, 65535), bands=Bands(6, "full")) for array in (SIX, other, SIX)]
    assert looks[0]["pixels"] == looks[2]["pixels"] != looks[1]["pixels"]
    assert (int(looks[0]["width"][0]), int(looks[0]["height"][0])) == (50, 40)
