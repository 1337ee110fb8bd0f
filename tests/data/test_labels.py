"""Labels that may mean none, several or the same number, and masks beside the images: noted, kept as they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data.labels import masks
from finetune.data.listing import Row
from finetune.data.sources import read
from finetune.errors import DataError


def notes_of(tmp_path: Path, *labels: str) -> str:
    for number in range(len(labels)):
        (tmp_path / f"{number}.jpg").touch()
    rows = (f'{number}.jpg,"{label}"' for number, label in enumerate(labels))
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    manifest = read(tmp_path / "t.csv")
    assert manifest.classes == tuple(sorted(set(labels)))
    return " | ".join(manifest.notes)


@pytest.mark.parametrize("label", ["nan", "NULL", "N/A", "unlabeled"])
def test_a_label_that_says_none_is_a_class_and_noted(tmp_path: Path, label: str) -> None:
    assert f"{label!r} is taken as a class: if that means that no class is known" in notes_of(tmp_path, "a", label)


@pytest.mark.parametrize("label", ["ant|bee", "ant, bee", "ant;bee", "ant bee", "bee+ant"])
def test_a_label_that_names_several_classes_is_a_class_of_its_own_and_noted(tmp_path: Path, label: str) -> None:
    assert f"{label!r} names several classes and is a class of its own" in notes_of(tmp_path, "ant", "bee", label)


@pytest.mark.parametrize(
    ("sign", "named"), [("|", ""), (";", " --set data.label_separator=';'"), (",", " --set data.label_separator=','")]
)
def test_classes_that_never_stand_alone_are_still_seen_in_labels_that_join_them(
    tmp_path, sign: str, named: str
) -> None:
    said = notes_of(tmp_path, "daisy", f"daisy{sign}red", f"rose{sign}red", "rose", "tulip")
    assert f"may name several classes with {sign!r} between them" in said and f"--task multilabel{named}" in said


def test_names_with_a_sign_in_them_cost_no_word(tmp_path: Path) -> None:
    assert notes_of(tmp_path, "Acer, red", "Quercus, red", "AC/DC", "red car", "red bus", "blue car") == ""


def test_one_number_written_in_two_ways_is_two_classes_and_noted(tmp_path: Path) -> None:
    assert "labels that are one number are classes of their own: '1', '1.0'" in notes_of(tmp_path, "1", "1.0", "2")


def test_labels_that_are_what_they_seem_cost_no_word(tmp_path: Path) -> None:
    assert notes_of(tmp_path, "great white", "great", "black", "10", "2", "none") == ""


def test_masks_beside_the_images_are_counted() -> None:
    files = [
        "a/x (1).png",
        "a/x (1)_mask.png",
        "a/x (1)_mask_1.png",
        "b/7.jpg",
        "b/7-seg.png",
        "b/gasmask.jpg",
        "b/mask.png",
    ]
    (note,) = masks([Row(file, file[0]) for file in files])
    assert note.startswith(
        "3 images are named like masks of others beside them, and read as images, e.g. a/x (1)_mask.png"
    )
    assert list(masks([Row("masks/face_mask.jpg", "mask"), Row("a/face.jpg", "a")])) == []


@pytest.mark.parametrize("cell", [{"bytes": b"x" * 9999, "path": "1.png"}, b"x" * 9999])
def test_images_inside_of_a_table_are_one_short_error(tmp_path: Path, cell: object) -> None:
    parquet.write_table(pyarrow.table({"image": [cell], "label": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="its column 'image' holds not file names") as caught:
        read(tmp_path / "t.parquet")
    assert len(caught.value.message) < 300 and "finetune shard hfds:" in caught.value.hint
