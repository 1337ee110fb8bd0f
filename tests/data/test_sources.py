"""Folders and tables as a manifest: classes, splits, groups, and what is wrong with them by name."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data.listing import SPLIT_NAMES
from finetune.data.sources import read
from finetune.errors import DataError, RecipeError
from finetune.types import Manifest
from tests import support

Lay = Callable[..., Path]
WriteTable = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """A function that lays empty files of these names; `sources` opens none."""

    def write(*names: str) -> Path:
        return support.lay(tmp_path, names)

    return write


@pytest.fixture
def table(tmp_path: Path) -> WriteTable:
    """A function that writes a table of (image, label, ...) rows and lays the images that it names."""

    def write(*rows: tuple[Any, ...], name: str = "t.csv", header: str = "image label", bom: bool = False) -> Path:
        columns, path = header.split(), tmp_path / name
        for row in rows:
            (tmp_path / row[0]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / row[0]).touch()
        if path.suffix == ".parquet":
            cells = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
            parquet.write_table(pyarrow.table(cells), path)
        else:
            with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
                csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
        return path

    return write


def listed(manifest: Manifest) -> dict[str, tuple[str, str | None]]:
    return {s.file: (manifest.classes[s.target.index], s.split) for s in manifest.samples}


def test_class_folders_become_classes_sorted_by_name(lay: Lay) -> None:
    manifest = read(lay("bee/1.jpg", "ant/2.PNG", "ant/1.jpg", "Cat/x.webp"))
    assert manifest.classes == ("Cat", "ant", "bee")
    assert [s.file for s in manifest.samples] == ["Cat/x.webp", "ant/1.jpg", "ant/2.PNG", "bee/1.jpg"]
    assert {s.split for s in manifest.samples} == {None}
    assert Path(manifest.root).is_absolute()


def test_nested_folders_belong_to_the_class_at_the_top(lay: Lay) -> None:
    manifest = read(lay("ant/2019/may/1.jpg", "ant/2.jpg", "bee/deep/er/3.jpg"))
    assert listed(manifest) == {
        "ant/2.jpg": ("ant", None),
        "ant/2019/may/1.jpg": ("ant", None),
        "bee/deep/er/3.jpg": ("bee", None),
    }


def test_images_come_in_an_order_of_their_names_alone(lay: Lay) -> None:
    names = [f"a/{(number * 7919) % 97:02}/{(number * 31) % 89:02}.jpg" for number in range(40)]
    files = [s.file for s in read(lay(*names, "b/1.jpg")).samples]
    assert files == [*sorted(names), "b/1.jpg"]


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "VALID", "Validation"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_split_folders_are_known_by_their_synonyms_in_any_case(lay: Lay, train: str, val: str, test: str) -> None:
    manifest = read(lay(*(f"{split}/{label}/1.jpg" for split in (train, val, test) for label in "ab")))
    assert manifest.classes == ("a", "b")
    assert listed(manifest)[f"{train}/a/1.jpg"] == ("a", "train")
    assert listed(manifest)[f"{val}/b/1.jpg"] == ("b", "val")
    assert listed(manifest)[f"{test}/b/1.jpg"] == ("b", "test")


def test_a_train_folder_alone_is_a_split(lay: Lay) -> None:
    assert listed(read(lay("train/a/1.jpg", "train/b/1.jpg")))["train/a/1.jpg"] == ("a", "train")


@pytest.mark.parametrize("name", sorted(SPLIT_NAMES))
def test_a_class_named_like_a_split_is_a_class_beside_others(lay: Lay, name: str) -> None:
    manifest = read(lay(f"{name}/1.jpg", "bus/1.jpg", "car/1.jpg"))
    assert manifest.classes == tuple(sorted([name, "bus", "car"]))
    assert listed(manifest)[f"{name}/1.jpg"] == (name, None)


def test_what_stands_beside_the_splits_is_left_out_and_named(lay: Lay) -> None:
    manifest = read(lay("train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "leftover/a/3.jpg"))
    assert set(listed(manifest)) == {"train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg"}
    assert any("leftover" in note for note in manifest.notes)


@pytest.mark.parametrize(
    "name",
    [
        *(".git/x.jpg", ".hidden.jpg", "__MACOSX/a/x.jpg", "a/Thumbs.db", "a/._1.jpg", "a/.cache/2.jpg", "a/notes.txt"),
        *("a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a/2.jpg", "$RECYCLE.BIN/$R1.jpg", "lost+found/1.jpg"),
    ],
)
def test_hidden_and_system_files_are_ignored(lay: Lay, name: str) -> None:
    manifest = read(lay("a/1.jpg", "b/1.jpg", name))
    assert set(listed(manifest)) == {"a/1.jpg", "b/1.jpg"}
    assert manifest.problems == ()


def test_classes_that_consist_of_folders_are_noted_with_both_things_that_these_may_be(lay: Lay) -> None:
    root = lay("ill/p1/1.jpg", "ill/p1/2.jpg", "ill/p2/1.jpg", "well/p3/1.jpg", "well/p4/1.jpg")
    (note,) = read(root).notes
    assert note.startswith("every class consists of folders, e.g. ill/p1, well/p3: where those are the classes")
    pattern = note.split("--group-by '")[1].split("'")[0]
    assert [sample.group for sample in read(root, group_by=pattern).samples] == ["p1", "p1", "p2", "p3", "p4"]
    lay("well/1.jpg")
    assert read(root).notes == ()


def test_run_folders_among_the_data_are_ignored(lay: Lay) -> None:
    root = lay("a/1.jpg", "b/1.jpg", "run/recipe.toml", "run/plan.json", "run/x.png")
    lay("a/runs/7/recipe.toml", "a/runs/7/plan.json", "a/runs/7/plot.png")
    assert set(listed(read(root))) == {"a/1.jpg", "b/1.jpg"}
    (root / "run/plan.json").unlink()
    assert "run/x.png" in listed(read(root))


def test_loose_images_and_empty_classes_are_noted(lay: Lay) -> None:
    root = lay("a/1.jpg", "b/1.jpg", "loose.jpg", "._loose.jpg", "notes.txt")
    (root / "empty").mkdir()
    manifest = read(root)
    assert manifest.classes == ("a", "b")
    assert any(note.startswith("1 image in ") and "no class" in note for note in manifest.notes)
    assert any("empty" in note for note in manifest.notes)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_an_error_that_names_it_and_its_neighbour(lay: Lay, split: str) -> None:
    root = lay("train/bees/1.jpg", "train/ants/1.jpg", "val/ants/1.jpg", f"{split}/bee/1.jpg")
    with pytest.raises(DataError, match=rf"{split} has the class 'bee', which train lacks.* 'bees'"):
        read(root)


def test_a_class_that_val_lacks_shifts_no_index(lay: Lay) -> None:
    manifest = read(lay("train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/2.jpg", "val/c/2.jpg"))
    assert manifest.classes == ("a", "b", "c")
    assert listed(manifest)["val/c/2.jpg"] == ("c", "val")


def test_one_class_is_an_error_except_where_one_is_enough(lay: Lay) -> None:
    root = lay("a/1.jpg", "a/2.jpg")
    with pytest.raises(DataError, match=r"only one class.*'a'"):
        read(root)
    assert read(root, needs_two_classes=False).classes == ("a",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no images in"),
        (["a/notes.txt", "b/notes.txt"], "no images in"),
        (["x.jpg"], "holds 1 image, but no class folders"),
        (["train/1.jpg", "val/1.jpg"], "train, val of .* are splits but have no class folders: .* the 2 images"),
    ],
)
def test_a_folder_without_labelled_images_is_an_error_with_the_layouts(lay: Lay, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(lay(*names))
    assert "<class>" in caught.value.hint


def test_a_path_that_is_not_there_is_an_error_with_the_nearest_name(lay: Lay) -> None:
    root = lay("images/a/1.jpg")
    with pytest.raises(DataError, match="imagse") as caught:
        read(root / "imagse")
    assert "'images'" in caught.value.hint


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "notes.txt", "loop", "pipe.csv", "gone/deeper"])
def test_a_path_that_is_no_data_is_an_error(lay: Lay, path: str) -> None:
    root = lay("notes.txt")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.csv")
    with pytest.raises(DataError):
        read(root / path)


@pytest.mark.parametrize(
    "name", ["a\nb.jpg", "🐜 ü.jpg", "-rf.jpg", " lead.jpg", 'q"u,o;te.jpg', os.fsdecode(b"\xff\xfe.jpg")]
)
def test_odd_names_are_kept_as_they_are(lay: Lay, name: str) -> None:
    root = lay(f"ant/{name}", "bee/1.jpg", f"{name}/2.jpg")
    manifest = read(root)
    assert f"ant/{name}" in listed(manifest)
    assert name in manifest.classes
    assert all((root / file).is_file() for file in listed(manifest))


def test_links_that_lead_nowhere_and_pipes_are_listed_for_the_scan_and_loops_end(lay: Lay) -> None:
    root = lay("a/1.jpg", "b/1.jpg")
    for link, target in {"a/self.jpg": "self.jpg", "a/gone.jpg": "gone", "loop": "loop", "x.jpg": "x.jpg"}.items():
        (root / link).symlink_to(target)
    (root / "a/again").symlink_to(".")
    (root / "a/up").symlink_to("..")
    os.mkfifo(root / "a/pipe.jpg")
    expected = {"a/1.jpg", "a/gone.jpg", "a/pipe.jpg", "a/self.jpg", "b/1.jpg"}
    assert set(listed(read(root))) == expected


def test_linked_folders_are_followed_and_walked_once(lay: Lay, tmp_path: Path) -> None:
    root = lay("data/a/1.jpg", "data/b/1.jpg", "store/2.jpg") / "data"
    (root / "a/first").symlink_to(tmp_path / "store")
    (root / "a/second").symlink_to(tmp_path / "store")
    (root / "c").symlink_to(tmp_path / "store")
    assert set(listed(read(root))) == {"a/1.jpg", "a/first/2.jpg", "b/1.jpg", "c/2.jpg"}


def test_a_folder_named_like_an_image_is_walked_as_a_folder(lay: Lay) -> None:
    assert set(listed(read(lay("a/x.jpg/1.jpg", "b.png/1.jpg")))) == {"a/x.jpg/1.jpg", "b.png/1.jpg"}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV", "t.parquet"])
def test_a_table_names_images_labels_and_splits(table: WriteTable, name: str) -> None:
    rows = [("i/1.jpg", "b", "Train"), ("i/2.jpg", "a", "train"), ("i/3.jpg", "b", "VALIDATION"), ("i/4.jpg", "a", "")]
    manifest = read(table(*rows, name=name, header="image label split"))
    assert manifest.classes == ("a", "b")
    assert listed(manifest) == {
        "i/1.jpg": ("b", "train"),
        "i/2.jpg": ("a", "train"),
        "i/3.jpg": ("b", "val"),
        "i/4.jpg": ("a", None),
    }


def test_a_byte_order_mark_is_no_part_of_a_column(table: WriteTable) -> None:
    path = table(("1.jpg", "a"), ("2.jpg", "b"), bom=True)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert read(path).classes == ("a", "b")


def test_columns_can_be_named(table: WriteTable) -> None:
    path = table(("1.jpg", "a", "test"), ("2.jpg", "a", "train"), ("3.jpg", "b", "train"), header="file kind part")
    manifest = read(path, image_column="file", label_column="kind", split_column="part")
    assert listed(manifest)["1.jpg"] == ("a", "test")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_missing_column_is_an_error_with_the_nearest_name_and_the_key(table: WriteTable, name: str) -> None:
    path = table(("1.jpg", "a"), ("2.jpg", "b"), name=name, header="image lable")
    with pytest.raises(RecipeError, match=r"no column 'label'.*'lable'") as caught:
        read(path)
    assert "data.label_column" in caught.value.hint
    assert "image, lable" in caught.value.hint


def test_an_unknown_split_word_is_an_error_with_its_line(table: WriteTable) -> None:
    path = table(("1.jpg", "a", "train"), ("2.jpg", "b", "holdout"), header="image label split")
    with pytest.raises(DataError, match="line 3: split 'holdout'"):
        read(path)


def test_images_that_are_missing_unlabelled_or_listed_again_are_problems(table: WriteTable) -> None:
    path = table(("1.jpg", "a", "train"), ("2.jpg", "b", "train"), header="image label split")
    with path.open("a") as stream:
        stream.write(f"gone.jpg,a,\n,a,\n2.jpg,,\n{'x' * 300}.jpg,a,\n.,a,\n1.jpg,b,val\nshort\n")
    manifest = read(path)
    assert listed(manifest) == {"1.jpg": ("a", "train"), "2.jpg": ("b", "train")}
    reasons = {problem.file: problem.reason for problem in manifest.problems}
    assert reasons["gone.jpg"] == reasons["x" * 300 + ".jpg"] == reasons["."] == "no such file"
    assert "no label" in reasons["2.jpg"] and "no label" in reasons["short"]
    assert "line 5" in next(file for file in reasons if "t.csv" in file)
    assert reasons["1.jpg"] == "listed again in line 9 (b); the first time counts"


def test_numbers_in_parquet_are_labels_and_groups_even_zero(table: WriteTable) -> None:
    rows = [("1.jpg", 0, 0), ("2.jpg", 1, 1), ("3.jpg", 1, None)]
    manifest = read(table(*rows, name="t.parquet", header="image label burst"), group_by="burst")
    assert listed(manifest) == {"1.jpg": ("0", None), "2.jpg": ("1", None), "3.jpg": ("1", None)}
    assert [s.group for s in manifest.samples] == ["0", "1", None]


def test_a_missing_number_in_parquet_is_no_label(table: WriteTable) -> None:
    rows = [("1.jpg", 0.0), ("2.jpg", 1.0), ("3.jpg", float("nan")), ("4.jpg", None)]
    manifest = read(table(*rows, name="t.parquet"))
    assert manifest.classes == ("0.0", "1.0")
    assert [problem.file for problem in manifest.problems] == ["3.jpg", "4.jpg"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_labels_and_files_may_be_in_any_script(table: WriteTable, name: str) -> None:
    manifest = read(table(("蚂蚁/一.jpg", "蚂蚁 🐜"), ("б.jpg", 'пчела, "b"\nx'), name=name))
    assert listed(manifest)["蚂蚁/一.jpg"] == ("蚂蚁 🐜", None)
    assert listed(manifest)["б.jpg"] == ('пчела, "b"\nx', None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"\xff\xfei\0m\0"),
        ("t.csv", b""),
        ("t.parquet", b""),
        ("t.parquet", b"PAR1junkPAR1"),
        ("t.tsv", b"\0"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, RecipeError), match=name):
        read(tmp_path / name)


def test_groups_come_from_a_column(table: WriteTable) -> None:
    path = table(("1.jpg", "a", "p1"), ("2.jpg", "b", "p2"), ("3.jpg", "b", ""), header="image label patient")
    assert [s.group for s in read(path, group_by="patient").samples] == ["p1", "p2", None]


def test_groups_come_from_the_first_bracket_of_a_pattern(lay: Lay) -> None:
    root = lay("a/p1_x_1.jpg", "a/p1_x_2.jpg", "b/p2_y_1.jpg", "b/other.jpg")
    manifest = read(root, group_by=r"/(p\d+)_(\w)")
    assert [s.group for s in manifest.samples] == ["p1", "p1", None, "p2"]
    assert any("1 image is in no group" in note for note in manifest.notes)


def test_without_a_bracket_the_match_is_the_group(lay: Lay) -> None:
    manifest = read(lay("a/p1_1.jpg", "a/p1_2.jpg", "b/p2_1.jpg"), group_by=r"p\d")
    assert [s.group for s in manifest.samples] == ["p1", "p1", "p2"]


def test_a_pattern_works_on_a_table_too(table: WriteTable) -> None:
    manifest = read(table(("v1/1.jpg", "a"), ("v1/2.jpg", "b"), ("v2/3.jpg", "b")), group_by="^([^/]+)/")
    assert [s.group for s in manifest.samples] == ["v1", "v1", "v2"]


def test_a_pattern_that_matches_nothing_is_an_error_that_shows_a_path(lay: Lay) -> None:
    with pytest.raises(RecipeError, match="matches no image") as caught:
        read(lay("a/1.jpg", "b/1.jpg"), group_by="patient")
    assert "a/1.jpg" in caught.value.hint


@pytest.mark.parametrize("pattern", ["(", "[a", "*x", "(?P<n>a)(?P<n>b)"])
def test_a_pattern_that_is_none_is_an_error_that_names_the_key(lay: Lay, pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.group_by = .*a regular expression"):
        read(lay("a/1.jpg", "b/1.jpg"), group_by=pattern)


@pytest.mark.parametrize(
    ("name", "said", "way_out"),
    [
        ("a.zip", "is an archive", "Unpack it"),
        ("a.tar", "is an archive", "wds:DIR"),
        ("a.txt", "is a file", "Expected"),
    ],
)
def test_a_file_that_is_no_data_is_one_error_with_the_way_out(
    tmp_path: Path, name: str, said: str, way_out: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=said) as refused:
        read(tmp_path / name)
    assert refused.value.hint and way_out in refused.value.hint
