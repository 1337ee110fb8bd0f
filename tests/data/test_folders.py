"""Folders that are splits or classes: obeyed where names say which, refused where not, counted where left out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from finetune.data.asked_images import asked_images
from finetune.data.listing import split_of
from finetune.data.sources import read
from finetune.errors import DataError
from finetune.types import Manifest
from tests import support

Lay = Callable[[Iterable[str]], Path]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """A function that lays empty files of these names."""
    return partial(support.lay, tmp_path)


def tree(pattern: str, *tops: str, below: Iterable[str] = ("ant", "bee")) -> list[str]:
    return [pattern.format(top=top, label=label) for top in tops for label in below]


def splits(manifest: Manifest) -> dict[str | None, set[str]]:
    """Return the classes of every split."""
    found: dict[str | None, set[str]] = {}
    for sample in manifest.samples:
        found.setdefault(sample.split, set()).add(manifest.classes[sample.target.index])
    return found


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("train", "dev", "val"),
        ("Train", "Val", "val"),
        ("train_images", "eval_images", "val"),
        ("train2017", "val2017", "val"),
        ("Training Data", "Testing Data", "test"),
        ("trainset", "testset", "test"),
        ("01_train", "02_test", "test"),
        ("birds_train", "birds_validation", "val"),
    ],
)
def test_folders_whose_names_say_a_split_are_splits(lay: Lay, train: str, other: str, split: str) -> None:
    manifest = read(lay(tree("{top}/{label}/1.jpg", train, other)))
    assert manifest.classes == ("ant", "bee")
    assert splits(manifest) == {"train": {"ant", "bee"}, split: {"ant", "bee"}}


@pytest.mark.parametrize(
    "pattern",
    [
        "images/{top}/{label}/1.jpg",
        "a/b/{top}/{label}/1.jpg",
        "{top}/{top}/{label}/1.jpg",
        "{top}/images/{label}/1.jpg",
        "{label}/{top}/1.jpg",
        "{label}/{top}/2019/1.jpg",
        "{label}/images/{top}/1.jpg",
        "{label}/a/{label}/{top}/1.jpg",
        "{label}/{label}_{top}/1.jpg",
    ],
)
def test_splits_may_lie_deeper_or_below_the_classes(lay: Lay, pattern: str) -> None:
    tops = ("seg_train", "seg_test") if "{top}/{top}" in pattern else ("train", "val")
    manifest = read(lay(tree(pattern, *tops)))
    assert manifest.classes == ("ant", "bee")
    assert all(labels == {"ant", "bee"} for labels in splits(manifest).values())
    assert len(splits(manifest)) == 2 and None not in splits(manifest)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (tree("{top}/{label}/1.jpg", "fold1", "fold2", "fold3"), "fold1, fold2, fold3"),
        (tree("{top}/{label}/1.jpg", "fold1", "fold2", below="0123456789"), "fold1, fold2"),
        (tree("{top}/{label}/1.jpg", "part_a", "part_b"), "part_a, part_b"),
        (tree("{top}/{label}/1.jpg", "first", "second"), "first, second"),
        (tree("{top}/{label}/1.jpg", "first", "second", below="01"), "first, second"),
        ([*tree("{top}/{label}/1.jpg", "first", "second"), "first/cow/1.jpg"], "first, second"),
        (tree("{top}/{label}/1.jpg", "train", "holdout"), "holdout, train"),
        (tree("{top}/{label}/1.jpg", "train", "training"), "train, training"),
        (tree("{top}/{label}/1.jpg", "train", "val", "valid"), "val, valid"),
        (["ant_train/1.jpg", "ant_test/1.jpg", "bee_train/1.jpg", "bee_test/1.jpg"], "ant_test, ant_train, bee_test"),
        ([f"{top}/{half}/{label}/1.jpg" for top in "xy" for half in ("train", "val") for label in "ab"], "x, y"),
        (["ant/train/1.jpg", "ant/val/1.jpg", "bee/1.jpg"], "bee"),
        (["ant/train/1.jpg", "ant/val/1.jpg", "bee/old/1.jpg"], "bee"),
        (["ant/train/1.jpg", "ant/val/1.jpg", "ant/2.jpg", "bee/train/1.jpg", "bee/val/1.jpg"], "ant"),
        (["ant/1.jpg", "ant/val/1.jpg", "bee/1.jpg", "bee/val/2.jpg"], "ant/val, bee/val"),
        (["ant/images/train/1.jpg", "ant/images/val/1.jpg", "bee/1.jpg"], "ant/images/train, ant/images/val"),
        (["ant/ant_train/1.jpg", "bee/1.jpg"], "ant/ant_train"),
        ([f"{x}/201{y}/{s}/1.jpg" for x in ("ant", "bee") for y in "89" for s in ("train", "val")], "ant/2018/train"),
        (["ant/p/train/1.jpg", "ant/p/val/1.jpg", "ant/2.jpg", "bee/1.jpg"], "ant/p/train, ant/p/val"),
        ([f"train/{x}/{s}/1.jpg" for x in ("ant", "bee") for s in ("train", "val")], "train/ant/train, train/ant/val"),
        (["train/ant/val/2.jpg", "train/bee/1.jpg"], "train/ant/val"),
        ([f"train/{s}/{x}/1.jpg" for x in ("ant", "bee") for s in ("train", "val")], "holds splits itself: train, val"),
        ([f"train/{x}ant/1.jpg" for x in ("", "val/")] + ["train/bee/1.jpg"], "holds splits itself: val"),
        (["all/train/a/1.jpg", "all/train/b/1.jpg", "all/val/a/1.jpg", "all/val/b/1.jpg", "old/1.jpg"], "beside other"),
        (["ant/val/1.jpg", "ant/valid/1.jpg", "bee/train/1.jpg", "bee/val/2.jpg"], "ant has one split twice"),
    ],
)  # fmt: skip
def test_what_looks_like_splits_and_does_not_say_which_is_refused_with_the_list_and_ways_out(
    lay: Lay, names: list[str], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(lay(names))
    assert said in caught.value.message
    assert "train, val and test" in caught.value.hint and "data.layout=classes" in caught.value.hint


@pytest.mark.parametrize("top", ["training_set test_set", "fold1 fold2", "train val"])
def test_the_layout_of_classes_makes_classes_of_all_folders_on_top(lay: Lay, top: str) -> None:
    manifest = read(lay(tree("{top}/{label}/1.jpg", *top.split())), layout="classes")
    assert manifest.classes == tuple(sorted(top.split()))
    assert splits(manifest) == {None: set(top.split())}


@pytest.mark.parametrize(
    "below",
    [
        ["front", "back"],
        ["2019", "2020"],
        ["2019-01-02", "2019-01-03"],
        ["001", "002", "003"],
        ["cam1", "cam2", "cam3"],
        ["patient_1", "patient_2"],
        ["40X", "100X", "200X"],
    ],
)
def test_classes_may_have_the_same_dates_numbers_and_views_below_them(lay: Lay, below: list[str]) -> None:
    manifest = read(lay(tree("{top}/{label}/1.jpg", "bus", "car", below=below)))
    assert manifest.classes == ("bus", "car")
    assert len(manifest.samples) == 2 * len(below)
    assert any("bus, car are taken as the classes" in note for note in manifest.notes)


def test_classes_with_different_folders_below_them_are_classes(lay: Lay) -> None:
    names = ["oak/leaf/1.jpg", "oak/bark/1.jpg", "pine/needle/1.jpg", "pine/cone/2.jpg", "pine/bark/3.jpg"]
    manifest = read(lay(names))
    assert manifest.classes == ("oak", "pine") and manifest.notes == ()


def test_a_vehicle_named_train_stays_a_class(lay: Lay) -> None:
    assert read(lay(["train/1.jpg", "bus/1.jpg"])).classes == ("bus", "train")
    assert read(lay(["train/old/1.jpg", "bus/old/1.jpg", "car/new/1.jpg"])).classes == ("bus", "car", "train")


@pytest.mark.parametrize("beside", ["unlabeled/1.jpg", "extra/2.jpg"])
def test_a_split_folder_beside_loose_images_is_refused_and_not_a_class(lay: Lay, beside: str) -> None:
    root = lay(["train/a/1.jpg", "train/b/1.jpg", beside])
    with pytest.raises(DataError, match="has the name of a split and holds class folders") as caught:
        read(root)
    assert "data.layout=classes" in caught.value.hint
    assert read(root, layout="classes").classes == tuple(sorted({"train", beside.split("/")[0]}))


@pytest.mark.parametrize("folders", ["images masks", "fold1 fold2"])
def test_images_beside_masks_or_folds_in_every_split_are_no_classes(lay: Lay, folders: str) -> None:
    names = [f"{top}/{part}/{label}/1.jpg" for top in ("train", "val") for part in folders.split() for label in "ab"]
    said = ", ".join(folders.split())
    with pytest.raises(DataError, match=rf"hold the same folders \(a, b\), so the classes may be these or {said}"):
        read(lay(names))


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "val/1.jpg"],
        ["Training/1.jpg", "Testing/1.jpg", "labels.csv"],
        ["train/images/1.jpg", "val/images/1.jpg", "train/labels/1.txt"],
        ["images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt"],
        ["train/train/1.jpg", "test1/test1/1.jpg", "sample.txt"],
        ["train/1.jpg", "train/2.jpg", "test/ant/1.jpg", "test/bee/1.jpg"],
    ],
)
def test_splits_without_class_folders_are_said_to_be_that_with_what_to_do(lay: Lay, names: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"(are splits|is a split) but (have|has) no class folders: .* the 2 images"
    ) as caught:
        read(lay(names))
    assert "/<class>" in caught.value.hint and "image, label and split" in caught.value.hint
    assert ("labels.csv says the classes" in caught.value.hint) == ("labels.csv" in names)


def test_a_val_or_test_without_class_folders_is_left_out_and_what_follows_is_said(lay: Lay) -> None:
    manifest = read(lay([*tree("train/{label}/1.jpg", "train"), "val/1.jpg", "test/test/1.jpg", "test/test/2.jpg"]))
    assert set(splits(manifest)) == {"train"}
    assert "1 image in val/ belongs to no class: left out, and val is taken from train" in manifest.notes
    assert "2 images in test/ belong to no class: left out, so nothing is measured on them" in manifest.notes


def test_a_split_folder_without_images_is_noted(lay: Lay) -> None:
    assert "no images in val: left out" in read(lay([*tree("train/{label}/1.jpg", "train"), "val/a.txt"])).notes


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["ant/fold1/1.jpg", "ant/fold2/1.jpg", "bee/fold1/1.jpg", "bee/fold2/1.jpg"],
            "ant/fold1, ant/fold2, bee/fold1",
        ),
        (["ant/fold1/1.jpg", "ant/fold2/1.jpg", "bee/1.jpg"], "ant/fold1, ant/fold2: read with the other images"),
        (["ant/val/1.jpg", "ant/2.jpg", "bee/1.jpg", "bee/2.jpg"], "ant/val: read with the other images of the class"),
        (["cat/1.jpg", "dog/1.jpg", "test/1.jpg"], "the folders test are taken as classes, like cat, dog"),
        (["fold1/1.jpg", "fold2/1.jpg"], "fold1, fold2 are taken as the classes"),
    ],
)
def test_what_may_be_a_split_and_is_not_obeyed_is_noted(lay: Lay, names: list[str], said: str) -> None:
    manifest = read(lay(names))
    assert len(manifest.samples) == len(names)
    assert any(said in note for note in manifest.notes)
    assert not any(said in note for note in read(lay(names), layout="classes").notes)


def test_files_beside_the_splits_of_a_class_are_counted(lay: Lay) -> None:
    names = tree("{label}/images/{top}/1.jpg", "train", "val")
    notes = read(lay([*names, "ant/x.heic", "ant/images/y.heic", "bee/images/test/readme.txt"])).notes
    assert any("2 .heic" in note for note in notes) and "no images in bee/images/test" in notes


def test_images_of_folders_beside_the_splits_are_counted(lay: Lay) -> None:
    manifest = read(lay([*tree("{top}/{label}/1.jpg", "train", "val"), "old/x/1.jpg", "old/2.jpg", "docs/a.txt"]))
    assert "left out, beside the splits: docs (0 images), old (2 images)" in manifest.notes


def test_a_class_in_two_unicode_forms_is_one(lay: Lay) -> None:
    one, other = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    manifest = read(lay([f"train/{one}/1.jpg", "train/bar/1.jpg", f"val/{other}/1.jpg"]))
    assert manifest.classes == ("bar", one)
    assert {s.file: s.split for s in manifest.samples}[f"val/{other}/1.jpg"] == "val"
    assert any("two Unicode forms" in note for note in manifest.notes)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cat", "cat "), ("big cat", "big_cat"), ("cat", "\u200bcat")])
def test_classes_that_differ_by_case_or_spaces_are_kept_and_noted(lay: Lay, names: tuple[str, str]) -> None:
    manifest = read(lay([*(f"{name}/1.jpg" for name in names), "dog/1.jpg"]))
    assert len(manifest.classes) == 3
    assert any("differ only by case, spaces" in note and repr(names[0]) in note for note in manifest.notes)


def test_files_of_kinds_that_are_not_read_are_counted_by_kind(lay: Lay) -> None:
    names = ["a/1.jpg", "b/1.jpg", "a/2.heic", "b/2.HEIC", "a/x.dng", "y.jxl", "a/notes.txt", "README"]
    (note,) = read(lay(names)).notes
    assert note.startswith("4 files are of kinds not read")
    assert all(part in note for part in ("2 .heic", "1 .dng", "1 .jxl")) and ".txt" not in note


def test_a_class_of_which_nothing_can_be_read_is_said_to_be_none(lay: Lay) -> None:
    manifest = read(lay(["a/1.jpg", "b/1.jpg", "c/1.heic", "c/2.heic"]))
    assert manifest.classes == ("a", "b")
    assert "no images in c that can be read, but 2 .heic: it is not a class" in manifest.notes


def test_data_of_which_nothing_can_be_read_says_what_is_there(lay: Lay) -> None:
    root = lay(["a/1.heic", "b/1.heic"])
    for fault in (lambda: read(root), lambda: asked_images([root])):
        with pytest.raises(DataError, match=r"2 \.heic"):
            fault()


def test_images_without_class_folders_are_told_of_the_table_beside_them(lay: Lay) -> None:
    root = lay(["1.jpg", "2.jpg", "labels.csv"])
    with pytest.raises(DataError, match="holds 2 images, but no class folders") as caught:
        read(root)
    assert str(root / "labels.csv") in caught.value.hint and "DIR/<class>/images" in caught.value.hint


def test_numbers_as_classes_are_noted_where_they_look_like_measurements(lay: Lay, tmp_path: Path) -> None:
    ages = read(lay(f"ages/{age}/{n}.jpg" for age in range(20, 60) for n in (1, 2)) / "ages")
    assert any("numbers" in note and "ranges" in note for note in ages.notes)
    lay(f"digits/{digit}/{n}.jpg" for digit in range(10) for n in (1, 2))
    lay(f"people/{person:04}/{n}.jpg" for person in range(1, 40) for n in (1, 2))
    assert read(tmp_path / "digits").notes == read(tmp_path / "people").notes == ()


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("valSet", "val"), ("test-images", "test"), ("contest", None), ("trainer", None), ("", None)],
)
def test_a_whole_name_says_a_split_or_none(name: str, split: str | None) -> None:
    assert split_of(name) == split
