"""Every image format as the RGB image that a person sees, and damaged files as one clear error."""

from __future__ import annotations

import io
import logging
import os
import random
import struct
import threading
import warnings
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finetune.bands import Bands
from finetune.images.arrays import array_of
from finetune.images.decode import UndecodableError, decode, examine, read_rgb
from finetune.images.files import ALWAYS, FORMATS
from finetune.images.names import EXTENSIONS, HAS_AVIF, is_image_name
from finetune.images.quiet import quiet
from finetune.images.rasters import RasterError
from tests.corpus import deep_png, encoded, noise, tiff_of_bands

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not HAS_AVIF, reason="Pillow was built without AVIF"))
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
EXIF_ORIENTATION = 0x112


def pixels(content: bytes, **options: Any) -> NDArray[np.float64]:
    image = decode(content, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


def smooth(width: int = 96, height: int = 64) -> Image.Image:
    """Four corners of four colours, blended."""
    corners = np.array([[RED, GREEN], [BLUE, (250, 220, 120)]], dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def close_to(found: NDArray[np.float64], colour: tuple[int, ...], tolerance: float = 2) -> bool:
    return bool(np.abs(found - np.array(colour)).max() <= tolerance)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(form: str) -> None:
    assert np.abs(pixels(encoded(smooth(), form)) - np.asarray(smooth())).mean() < 12


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_comes_out_as_it_is(form: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(noise(60, 45), form)), np.asarray(noise(60, 45)))


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise(60, 45).convert("L")
    np.testing.assert_array_equal(pixels(encoded(grey)), np.stack([np.asarray(grey)] * 3, axis=2))


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    np.testing.assert_array_equal(pixels(encoded(bits))[0], [WHITE, BLACK])


def _palette(*indices: int) -> Image.Image:
    image = Image.fromarray(np.array([indices], dtype=np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_its_colours(form: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(_palette(2, 0, 1), form))[0], [BLUE, RED, GREEN])


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(form: str) -> None:
    content = encoded(_palette(0, 1, 2), form, transparency=1)
    np.testing.assert_array_equal(pixels(content)[0], [RED, WHITE, BLUE])


def test_half_transparent_palette_entry_is_blended_with_white() -> None:
    content = encoded(_palette(0, 1, 2), transparency=bytes([255, 128, 0]))
    assert close_to(pixels(content)[0, 0], RED, 0)
    assert close_to(pixels(content)[0, 1], (127, 255, 127))
    assert close_to(pixels(content)[0, 2], WHITE, 0)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", AVIF])
def test_rgba_stands_on_white(form: str) -> None:
    values = np.array([[(*BLACK, 0), (*BLUE, 255), (*RED, 128)]], dtype=np.uint8)
    exact = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(form, {})
    found = pixels(encoded(Image.fromarray(values), form, **exact))[0]
    assert close_to(found[0], WHITE)
    assert close_to(found[1], BLUE)
    assert close_to(found[2], (255, 127, 127))


def test_grey_with_alpha_stands_on_white() -> None:
    image = Image.merge("LA", [Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0)])
    assert close_to(pixels(encoded(image)), WHITE, 0)
    image.putalpha(255)
    assert close_to(pixels(encoded(image)), (40, 40, 40), 0)


@pytest.mark.parametrize(("mode", "key"), [("RGB", GREEN), ("L", 7)])
def test_transparent_colour_key_becomes_white(mode: str, key: Any) -> None:
    assert close_to(pixels(encoded(Image.new(mode, (3, 3), key), transparency=key)), WHITE, 0)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 255), BLACK)]
)
def test_cmyk_comes_out_in_its_own_colour(form: str, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    content = encoded(Image.new("CMYK", (64, 64), ink), form)
    assert close_to(pixels(content), colour)
    assert close_to(pixels(content, side=8), colour)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_brightness(form: str) -> None:
    image = Image.fromarray(np.array([[0, 0x80FF, 65535, 256]], dtype=np.uint16))
    np.testing.assert_array_equal(pixels(encoded(image, form))[0, :, 0], [0, 128, 255, 1])


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25, 0.5], [0, 64, 128]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 50.0, 100.0], [0, 50, 100]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 5e8, 1e9], [0, 128, 255]),
        ([float("nan"), 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
    ids=str,
)
def test_float_tiff_is_shown_over_its_range(values: list[float], seen: list[int]) -> None:
    content = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    np.testing.assert_allclose(pixels(content)[0, :, 0], seen, atol=1)


def test_whole_numbers_of_32_bits_keep_their_brightness() -> None:
    image = Image.fromarray(np.array([[0, 1, 200, 100]], dtype=np.int32))
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF"))[0, :, 0], [0, 1, 200, 100])


STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", AVIF])
def test_exif_orientation_is_obeyed(form: str) -> None:
    for orientation, turned in STORED.items():
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        content = encoded(Image.fromarray(np.ascontiguousarray(turned(np.asarray(smooth())))), form, exif=exif)
        for options in ({}, {"side": 64}):
            found = pixels(content, **options)
            assert found.shape == (64, 96, 3), orientation
            assert np.abs(found - np.asarray(smooth())).mean() < 6, orientation


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no exif at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1\1", b"Exif\0\0", b"x"])
def test_damaged_exif_costs_no_picture(form: str, exif: bytes) -> None:
    found = pixels(encoded(smooth(), form, exif=exif))
    assert np.abs(found - np.asarray(smooth())).mean() < 6


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO", AVIF])
def test_of_several_frames_the_first_is_shown(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert close_to(pixels(content), RED, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_file_is_an_error(form: str) -> None:
    content = encoded(noise(60, 45), form)
    for share, side in product([0.01, 0.1, 0.5, 0.9], [None, 16]):
        with pytest.raises(UndecodableError) as caught:
            decode(content[: int(len(content) * share)], side=side)
        assert caught.value.message, (share, side)
        assert "\n" not in caught.value.message, (share, side)


def test_jpeg_cut_anywhere_is_an_error_or_the_whole_picture() -> None:
    content = encoded(smooth(), "JPEG")
    whole, num_refused = pixels(content), 0
    for length in range(len(content)):
        try:
            np.testing.assert_array_equal(pixels(content[:length]), whole)
        except UndecodableError:
            num_refused += 1
    assert num_refused >= len(content) - 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello\n" * 50, "no image"),
        (b"\xff\xd8\xff", "damaged|no image"),
        (b"<svg></svg>", "no image"),
    ],
)
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UndecodableError, match=reason) as caught:
        read_rgb(tmp_path / "x.jpg")
    assert "object at 0x" not in caught.value.message


def test_decompression_bomb_is_refused_unopened() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, body, b"IEND")]
    with pytest.raises(UndecodableError, match=r"too many pixels.*3600000000"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_a_picture_in_a_format_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UndecodableError, match="format"):
        decode(encoded(smooth(), "PPM"))


def test_a_missing_file_a_folder_and_a_loop_are_errors_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("missing.jpg", "folder.jpg", "loop.jpg", "x" * 300 + ".jpg"):
        with pytest.raises(UndecodableError, match=name):
            read_rgb(tmp_path / name)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    # Whoever does open it finds it empty, so that this test fails rather than hangs.
    writer = threading.Thread(target=lambda: pipe.open("wb").close(), daemon=True)
    writer.start()
    with pytest.raises(UndecodableError, match="not a regular file"):
        read_rgb(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # lets the writer go
    writer.join(5)
    os.close(reader)
    assert not writer.is_alive()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(400, 300), (300, 1200), (3000, 1000), (150, 90)])
@pytest.mark.parametrize("side", [100, 299])
def test_the_shorter_side_keeps_so_many_pixels(form: str, size: tuple[int, int], side: int) -> None:
    content = encoded(smooth(*size), form)
    found = decode(content, side=side)
    assert min(found.size) == min(side, *size)
    assert abs(found.width / found.height / (size[0] / size[1]) - 1) < 0.02
    assert (found.size == size) == (min(size) <= side)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced_decoding_is_close_to_the_full_picture(mode: str) -> None:
    content = encoded(smooth(1600, 1200).convert(mode), "JPEG", quality=90)
    small = decode(content, side=150)
    assert small.size == (200, 150)
    full = decode(content).resize(small.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small).astype(float) - np.asarray(full)).mean() < 1


@pytest.mark.parametrize("form", FORMATS)
def test_damage_anywhere_is_a_picture_or_our_error(form: str) -> None:
    content, rng, num_refused = encoded(noise(60, 45), form), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(damaged) if rng.random() < 0.5 else 120)] = rng.randrange(256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except UndecodableError:
            num_refused += 1
    assert num_refused > 0


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "b c.JpEg", "x.y.png", "ä.webp", "a\nb.tif", "-x.gif", "a.jfif"])
def test_image_names_are_told_by_their_ending(name: str) -> None:
    assert is_image_name(name)
    assert not is_image_name(f"{name}.txt")


@pytest.mark.parametrize("name", ["jpg", ".jpg", "Thumbs.db", "notes.txt", "a.jpg~", "", "png."])
def test_other_names_are_no_image_names(name: str) -> None:
    assert not is_image_name(name)


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "a.JPG", ".jpg", "..jpg", "a.jpg.", "a..jpg", "jpg", "", ".", "..", ".a.jpg", "a.jpg.txt", "\udcff.png"],
)
def test_an_ending_is_what_paths_take_for_one(name: str) -> None:
    assert is_image_name(name) == (Path(name).suffix.lower() in EXTENSIONS)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_numbers_of_16_bits_are_shown_over_the_bits_that_they_fill(bits: int, channels: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (9, 8, channels)).astype(np.uint16)
    values[0, 0], values[..., 3:] = 2**bits - 1, 65535  # opaque
    found = examine(deep_png(values), np.asarray)
    assert found.span is not None and found.span.high == 2**bits - 1
    expected = np.round(255 * values[..., :3].astype(float) / (2**bits - 1))
    assert np.abs(found.content.astype(float) - expected).max() == 0


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bits_in_a_tiff_are_read_in_either_order_of_bytes(byteorder: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4096, (9, 8, 3)).astype(np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric="rgb", byteorder=byteorder)
    made = np.asarray(decode(stream.getvalue(), value_range=(0, 4095))).astype(float)
    assert np.array_equal(made, np.round(255 * values.astype(float) / 4095))


def test_a_value_range_that_is_given_holds_for_every_image() -> None:
    dark = encoded(Image.fromarray(np.array([[0, 100], [200, 1000]], dtype=np.uint16)), "PNG")
    assert np.asarray(decode(dark, value_range=(0.0, 200.0)))[..., 0].tolist() == [[0, 128], [255, 255]]


@pytest.mark.parametrize("num_bands", [5, 6, 7, 13])
def test_a_tiff_of_more_bands_than_are_read_is_refused_with_their_number(num_bands: int) -> None:
    with pytest.raises(
        UndecodableError, match=f"^{num_bands} channels, where 3 are read: data.channels = {num_bands} "
    ):
        examine(tiff_of_bands(num_bands), lambda image: image)


@pytest.mark.parametrize(("num_bands", "extra", "remark"), [(1, 0, ""), (3, 0, ""), (4, 2, ""), (4, 0, "four bands")])
def test_the_fourth_band_is_transparency_or_said_to_be_left_out(num_bands: int, extra: int, remark: str) -> None:
    found = examine(tiff_of_bands(num_bands, extra=extra), lambda image: image.mode)
    assert found.content == "RGB"
    assert found.remark.startswith(remark) and bool(found.remark) is bool(remark)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG", AVIF])
def test_pages_and_frames_beyond_the_first_are_remarked(form: str) -> None:
    pages = [smooth(), smooth().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    content = encoded(pages[0], form, save_all=True, append_images=pages[1:])
    assert "the first is used" in examine(content, lambda _: None).remark
    assert examine(encoded(pages[0], form), lambda _: None).remark == ""


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow was built without AVIF")
def test_an_avif_of_more_than_8_bits_is_refused_where_all_bits_count() -> None:
    content = bytearray(encoded(smooth(), "AVIF"))
    assert examine(bytes(content), lambda stack: len(stack.channels), bands=Bands(3, "full")).content == 3
    with Image.open(io.BytesIO(content)) as image:
        content[content.index(b"av1C") + 6] |= 0x40  # what is read has 8: Pillow writes no others
        with pytest.raises(RasterError, match="10 or 12 bits, of which Pillow reads 8"):
            array_of(image, bytes(content))


@pytest.mark.parametrize("brand", ["heic", "mif1", "avif", "avis"])
def test_a_format_that_is_not_read_is_called_by_its_name(brand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.images.files.HAS_AVIF", False)
    monkeypatch.setattr("finetune.images.decode.FORMATS", ALWAYS)
    content = struct.pack(">I", 24) + b"ftyp" + brand.encode() + bytes(4) + b"mif1" + b"miaf" + bytes(200)
    form = "AVIF" if brand.startswith("av") else "HEIC"
    with pytest.raises(UndecodableError, match=f"^an image in {form}, which this installation of Pillow does not read"):
        decode(content)


def test_silence_of_several_threads_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    before, level = warnings.filters[:], logging.getLogger("PIL").level
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.getLogger("PIL").level == logging.CRITICAL and warnings.filters != before
    second.__exit__(None, None, None)
    assert logging.getLogger("PIL").level == level and warnings.filters == before
