"""What an image looks like is told from its content once, kept by content, and never trusted when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cache_entries import entries_folder
from finetune.data.sample import CLASSES, draw
from finetune.data.summary import give_aways, pictures_of
from finetune.errors import DataError
from finetune.images import thumbnails
from finetune.images.files import FORMATS
from finetune.images.thumbnails import look, looks_of
from finetune.settings import CacheSection
from tests.corpus import encoded
from tests.support import scanned, watch_reading

MakeImages = Callable[..., Path]
SETTINGS = CacheSection()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    return watch_reading(monkeypatch, thumbnails)


def test_the_same_pixels_have_one_hash_whatever_the_file() -> None:
    picture = draw(CLASSES[0], index=0, seed=0)
    png, bmp, tiff = (look(encoded(picture, kind))[0] for kind in ("PNG", "BMP", "TIFF"))
    assert bytes(png["pixels"]) == bytes(bmp["pixels"]) == bytes(tiff["pixels"])
    assert [FORMATS[row["format"]] for row in (png, bmp, tiff)] == ["PNG", "BMP", "TIFF"]
    turned = look(encoded(picture.transpose(Image.Transpose.ROTATE_180)))[0]
    assert bytes(turned["pixels"]) != bytes(png["pixels"])
    assert (png["width"], png["height"]) == picture.size


def test_a_reshaped_picture_of_the_same_bytes_is_another() -> None:
    pixels = np.zeros((4, 9, 3), dtype=np.uint8)
    wide, tall = (look(encoded(Image.fromarray(pixels.reshape(shape))))[0] for shape in ((4, 9, 3), (9, 4, 3)))
    assert bytes(wide["pixels"]) != bytes(tall["pixels"])


def test_grey_is_told_by_the_picture_not_by_its_mode() -> None:
    picture = draw(CLASSES[0], index=1, seed=0)
    assert not look(encoded(picture))[0]["is_grey"]
    grey = picture.convert("L")
    assert all(
        look(content)[0]["is_grey"] for content in (encoded(grey), encoded(grey.convert("RGB"), "JPEG", quality=80))
    )


def test_contrast_is_that_of_the_whole_picture() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    fine, blank = (look(encoded(Image.fromarray(v.astype(np.uint8))))[0] for v in (board, np.full((64, 64), 90)))
    assert fine["grey"].std() < 2 < 100 < fine["contrast"]
    assert blank["contrast"] == 0


def test_a_second_look_opens_no_file_and_finds_the_same(image_folder: MakeImages, opened: list[Path]) -> None:
    manifest = scanned(image_folder())
    first = looks_of(manifest, settings=SETTINGS)
    assert len(opened) == len(manifest.samples) == 12
    opened.clear()
    assert (looks_of(manifest, settings=SETTINGS) == first).all()
    assert opened == []


def test_copies_are_looked_at_once_and_rows_stand_in_the_order_of_the_samples(
    image_folder: MakeImages, opened: list[Path]
) -> None:
    root = image_folder(per_class=2)
    (root / "bee/again.jpg").write_bytes((root / "ant/ant-00.jpg").read_bytes())
    manifest = scanned(root)
    found = looks_of(manifest, settings=SETTINGS)
    assert len(opened) == 4
    alone = [look(Path(root, sample.file).read_bytes())[0] for sample in manifest.samples]
    assert [bytes(row["pixels"]) for row in found] == [bytes(row["pixels"]) for row in alone]


def test_damaged_rows_are_made_anew(image_folder: MakeImages, opened: list[Path]) -> None:
    manifest = scanned(image_folder())
    first = looks_of(manifest, settings=SETTINGS)
    (rows,) = entries_folder().glob("*/rows.bin")
    content = bytearray(rows.read_bytes())
    content[10] ^= 1
    rows.write_bytes(content)
    opened.clear()
    assert (looks_of(manifest, settings=SETTINGS) == first).all()
    assert len(opened) == 1


def test_where_nothing_can_be_kept_it_goes_without(image_folder: MakeImages, tmp_path: Path) -> None:
    manifest = scanned(image_folder())
    file = tmp_path / "file"
    file.write_text("")
    for settings in (CacheSection(folder=str(file / "x")), CacheSection(limit=1e-9)):
        assert len(looks_of(manifest, settings=settings)) == 12


def test_a_file_that_went_away_is_an_error_that_names_it(image_folder: MakeImages) -> None:
    root = image_folder()
    manifest = scanned(root)
    (root / "ant/ant-00.jpg").unlink()
    with pytest.raises(DataError, match=r"ant/ant-00\.jpg could be read when the data was scanned"):
        looks_of(manifest, settings=SETTINGS)


def rows(formats: list[str], sides: list[tuple[int, int]]) -> thumbnails.Looks:
    made = np.zeros(len(formats), thumbnails.LOOK)
    made["format"] = [FORMATS.index(name) for name in formats]
    made["width"], made["height"] = zip(*sides, strict=True)
    return made


def test_pictures_are_summed_up_by_size_format_and_colour() -> None:
    found = pictures_of(rows(["PNG", "JPEG", "PNG"], [(9, 9), (2, 3), (100, 1)]))
    assert (found.smallest, found.median, found.largest) == ((2, 3), (9, 9), (100, 1))
    assert (found.formats, found.num_grey) == ({"PNG": 2, "JPEG": 1}, 0)


def test_a_trait_that_tells_the_class_is_named_and_chance_is_not() -> None:
    labels = np.arange(60) % 2
    told = rows(["PNG" if label else "JPEG" for label in labels], [(64, 64)] * 60)
    (found,) = give_aways(told, labels, ("ant", "bee"))
    assert (found.trait, found.share) == ("the file format", pytest.approx(1, abs=0.02))
    assert found.counts == {"JPEG": {"ant": 30}, "PNG": {"bee": 30}}
    rng = np.random.default_rng(0)
    mixed = rows(rng.choice(["PNG", "JPEG", "BMP"], 60).tolist(), [(int(s), 64) for s in rng.integers(16, 512, 60)])
    assert give_aways(mixed, labels, ("ant", "bee")) == []


def test_of_one_class_nothing_is_told() -> None:
    told = rows(["PNG", "JPEG"] * 10, [(64, 64)] * 20)
    assert give_aways(told, np.zeros(20, dtype=np.int64), ("ant",)) == []
