"""Tables of images: double columns, files that are not found, forms of names, splits under other names, numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data.image_column import check_column
from finetune.data.sources import read
from finetune.errors import DataError, RecipeError
from finetune.types import Manifest
from tests.support import lay

FILES = ("i/1.jpg", "i/2.jpg", "images/3.jpg", "images/4.PNG", "caf\u00e9/5.jpg")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a table with this text beside empty images."""
    lay(tmp_path, FILES)

    def to(*lines: str, header: str = "image,label", encoding: str = "utf-8") -> Path:
        (tmp_path / "t.csv").write_text("\n".join([header, *lines]), encoding=encoding)
        return tmp_path / "t.csv"

    return to


def files(manifest: Manifest) -> list[str]:
    return [sample.file for sample in manifest.samples]


@pytest.mark.parametrize("header", ["image,label,label", "image,label, label ", "label,image,image"])
def test_a_column_that_counts_and_is_there_twice_is_refused(write: Write, header: str) -> None:
    with pytest.raises(DataError, match=r"2 columns named '(label|image)'"):
        read(write("i/1.jpg,i/1.jpg,i/2.jpg", header=header))


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["x.jpg"]), pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["image", "label", "label"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="2 columns named 'label'"):
        read(tmp_path / "t.parquet")


def test_columns_that_differ_by_case_are_noted_and_others_may_be_double(write: Write) -> None:
    manifest = read(write("i/1.jpg,a,x,1,2", "i/2.jpg,b,y,1,2", header="image,label,Label,z,z"))
    assert manifest.classes == ("a", "b")
    assert manifest.notes[0] == "of the columns label, Label, which differ only by case, label is taken"


@pytest.mark.parametrize(
    ("named", "near"),
    [
        ("i\\1.jpg", "i/1.jpg"),
        ("i/1", "i/1.jpg"),
        ("images/4.jpg", "images/4.PNG"),
        ("3.jpg", "images/3.jpg"),
        ("I/1.JPG", "i/1.jpg"),
        ("/home/else/data/i/1.jpg", "i/1.jpg"),
        ("C:\\data\\i\\1.jpg", "i/1.jpg"),
        ("data/images/3", "images/3.jpg"),
    ],
)
def test_rows_whose_files_are_not_there_are_counted_with_the_place_and_the_near_miss(
    write: Write, tmp_path: Path, named: str, near: str
) -> None:
    with pytest.raises(DataError, match="none of the files of its 2 rows is there") as caught:
        read(write(f"{named},a", "gone.jpg,b"))
    assert str(tmp_path / named) in caught.value.message or named in caught.value.message
    assert f"there is {near!r}" in caught.value.hint


def test_some_rows_without_files_are_a_note_with_count_place_and_near_miss(write: Write, tmp_path: Path) -> None:
    manifest = read(write("i/1.jpg,a", "i/2.jpg,b", "gone.jpg,a", "i/1,b"))
    note, beside = manifest.notes
    assert beside.startswith("3 images lie beside the table but in no row")
    assert note.startswith(f"2 of 4 rows name a file that is not there, e.g. {tmp_path / 'gone.jpg'}")
    assert note.endswith("instead of 'i/1': there is 'i/1.jpg'")
    assert [problem.file for problem in manifest.problems] == ["gone.jpg", "i/1"]


def test_one_row_without_a_file_is_told_in_the_singular(write: Write) -> None:
    note = read(write("i/1.jpg,a", "i/2.jpg,b", "gone.jpg,a")).notes[0]
    assert note.startswith("1 of 3 rows names a file that is not there")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_images_beside_a_table_that_no_row_names_are_counted_in_one_note(tmp_path: Path, suffix: str) -> None:
    lay(tmp_path, ["1.jpg", "i/2.jpg", "i/3.jpg", "i/j/4.PNG", "new/5.jpg", ".6.jpg", ".old/7.jpg", "i/notes.txt"])
    (tmp_path / "a link").symlink_to(tmp_path / "i")  # the files that rows name have other paths too
    rows = {"image": ["1.jpg", "i/../i/2.jpg", str(tmp_path / "i/3.jpg")], "label": ["a", "b", "a"]}
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.table(rows), path)
    else:
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if suffix == "tsv" else ",").writerows(
                [rows, *zip(*rows.values(), strict=True)]
            )
    (note,) = read(path).notes
    assert note == "2 images lie beside the table but in no row: left out, e.g. a link/j/4.PNG"


def test_rows_that_cannot_be_used_name_their_image_all_the_same(write: Write) -> None:
    manifest = read(write(*(f"{name},{label}" for name, label in zip(FILES, ("a", "b", "", "b", "a"), strict=True))))
    assert len(manifest.problems) == 1 and manifest.notes == ()


def test_of_a_huge_folder_the_images_beside_a_table_are_counted_as_far_as_was_looked(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("i/1.jpg,a", "i/2.jpg,b")
    lay(path.parent, (f"more/{folder}/{number}.jpg" for folder in range(4) for number in range(5)))
    monkeypatch.setattr("finetune.data.tables.MOST_LOOKED_AT", 10)
    assert any(note.startswith("at least ") and "in no row" in note for note in read(path).notes)


def test_a_table_without_one_whole_row_says_so(write: Write) -> None:
    with pytest.raises(DataError, match="of its 2 rows none has both an image and a label"):
        read(write("i/1.jpg,", "i/2.jpg,"))


def test_names_in_another_unicode_form_are_found_and_are_one_class_and_one_group(write: Write) -> None:
    path = write(
        "cafe\u0301/5.jpg,cafe\u0301,e\u0301", "i/1.jpg,caf\u00e9,\u00e9", "i/2.jpg,b,", header="image,label,who"
    )
    manifest = read(path, group_by="who")
    assert files(manifest) == ["caf\u00e9/5.jpg", "i/1.jpg", "i/2.jpg"]
    assert manifest.classes == ("b", "caf\u00e9") and manifest.problems == ()
    assert [sample.group for sample in manifest.samples] == ["\u00e9", "\u00e9", None]


@pytest.mark.parametrize("column", ["subset", "Split", "set"])
def test_splits_in_a_column_of_another_name_are_refused_with_both_ways_out(write: Write, column: str) -> None:
    path = write("i/1.jpg,a,train", "i/2.jpg,b,train", "images/3.jpg,a,test", header=f"image,label,{column}")
    with pytest.raises(RecipeError, match=f"'{column}' holds test and train") as caught:
        read(path)
    assert f"data.split_column={column}" in caught.value.hint
    assert [sample.split for sample in read(path, split_column=column).samples] == ["train", "train", "test"]
    assert {sample.split for sample in read(path, split_column="none").samples} == {None}
    assert any(column in note for note in read(path, needs_splits=False).notes)


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [("is_valid", ("False", "True"), ["train", "train", "val"]), ("Test", ("0", "1"), ["train", "train", "test"])],
)
def test_a_column_that_says_yes_or_no_of_a_split_is_not_passed_over(
    write: Write, column: str, cells: tuple[str, str], expected: list[str]
) -> None:
    rows = ("i/1.jpg,a", "i/2.jpg,b", "images/3.jpg,a")
    path = write(*map(",".join, zip(rows, (cells[0], *cells), strict=True)), header=f"image,label,{column}")
    with pytest.raises(RecipeError, match=f"'{column}' holds {cells[0]} and {cells[1]}, but is not") as caught:
        read(path)
    assert f"--set data.split_column={column} uses it" in caught.value.hint
    assert [sample.split for sample in read(path, split_column=column).samples] == expected
    assert {sample.split for sample in read(path, split_column="none").samples} == {None}


def test_a_column_that_says_what_is_train_leaves_open_what_the_others_are(write: Write) -> None:
    with pytest.raises(RecipeError, match="holds 0 and 1") as caught:
        read(write("i/1.jpg,a,0", "i/2.jpg,b,1", header="image,label,is_training_image"))
    assert "with val or test for the others" in caught.value.hint and "uses it" not in caught.value.hint


@pytest.mark.parametrize("column", ["fold", "Split", "set"])
def test_a_column_that_is_named_as_if_it_divided_and_does_not_is_noted(write: Write, column: str) -> None:
    path = write("i/1.jpg,a,0", "i/2.jpg,b,1", "images/3.jpg,b,2", header=f"image,label,{column}")
    assert any(f"'{column}' (0, 1, 2) divides nothing here" in note for note in read(path).notes)
    for more in ({"group_by": column}, {"split_column": "none"}, {"label_column": column}):
        assert not any("divides nothing" in note for note in read(path, **more).notes)


def test_cells_beyond_the_last_column_are_counted(write: Write) -> None:
    notes = read(write("i/1.jpg,a,", "i/2.jpg,b,c", "images/3.jpg,b,c,d")).notes
    assert any("2 rows have more cells than there are columns" in note and "'c' in row 3" in note for note in notes)


def test_the_line_in_which_excel_says_the_separator_is_no_head_of_a_table(write: Write) -> None:
    path = write("image|label", "i/1.jpg|a,b", "i/2.jpg|c", header="sep=|", encoding="utf-8-sig")
    assert read(path).classes == ("a,b", "c")
    check_column(path, "image")


def test_a_split_column_that_is_named_and_not_there_is_refused(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"no column 'prt'.*'part'"):
        read(write("i/1.jpg,a,train", "i/2.jpg,b,train", header="image,label,part"), split_column="prt")


def test_the_error_of_a_table_of_one_class_names_what_was_left_out(write: Write) -> None:
    with pytest.raises(DataError, match=r"only one class in .*: 'a' \(1 image\); i/9\.jpg: no such file"):
        read(write("i/1.jpg,a", "i/9.jpg,b"))


def test_words_of_splits_are_those_of_folders(write: Write) -> None:
    manifest = read(
        write("i/1.jpg,a,Training_Set", "i/2.jpg,b,train", "images/3.jpg,a,dev", header="image,label,split")
    )
    assert [sample.split for sample in manifest.samples] == ["train", "train", "val"]


def test_fractions_as_labels_are_refused_where_no_class_has_two_images_and_noted_in_a_check(write: Write) -> None:
    path = write("i/1.jpg,1.5", "i/2.jpg,2.25", "images/3.jpg,7.5")
    with pytest.raises(DataError, match="labels look like measured numbers") as caught:
        read(path)
    assert "ranges" in caught.value.hint
    assert any("labels look like measured numbers" in note for note in read(path, needs_two_classes=False).notes)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-8-sig"])
def test_a_table_with_the_mark_of_utf_16_is_read(write: Write, encoding: str) -> None:
    path = write("i/1.jpg,ä", "i/2.jpg,日本", "images/3.jpg,ä", encoding=encoding)
    assert read(path).classes == ("ä", "日本") and check_column(path, "auto") == "image"


def test_a_table_of_another_encoding_is_refused_with_its_line_and_the_way_out(write: Write) -> None:
    with pytest.raises(DataError, match=r"t\.csv line 3 is not UTF-8: b'i/2\.jpg,b\\xe4r'") as caught:
        read(write("i/1.jpg,a", "i/2.jpg,bär", encoding="latin-1"))
    assert "iconv" in caught.value.hint


def test_a_comment_above_the_names_of_the_columns_is_told_and_a_column_of_that_name_is_read(tmp_path: Path) -> None:
    path = raw(tmp_path, "# exported, 2024, by hand\n#\nimage,label\n0.jpg,a\n1.jpg,b\n")
    for reading in (read, lambda table: check_column(table, "auto")):
        with pytest.raises(DataError, match="begins with a comment: '# exported, 2024, by hand'"):
            reading(path)
    assert read(raw(tmp_path, "#,image,label\n1,0.jpg,a\n2,1.jpg,b\n")).classes == ("a", "b")


def raw(tmp_path: Path, text: str) -> Path:
    for place in range(4):
        (tmp_path / f"{place}.jpg").touch()
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig", newline="")
    return tmp_path / "t.csv"


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_columns_may_be_separated_by_what_the_first_line_has_in_place_of_commas(tmp_path: Path, sign: str) -> None:
    lines = ["image,label", '0.jpg,"a, big"', "1.jpg,b"]
    manifest = read(raw(tmp_path, "\r\n".join(line.replace(",", sign) for line in lines)))
    assert [manifest.label(sample.target) for sample in manifest.samples] == [f"a{sign} big", "b"]
    assert check_column(tmp_path / "t.csv", "auto") == "image"


def test_a_semicolon_in_a_name_of_a_column_separates_nothing_where_there_are_commas(tmp_path: Path) -> None:
    assert read(raw(tmp_path, "image,label;a\n0.jpg,a\n1.jpg,b\n"), label_column="label;a").classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"), [("", "is empty"), ("0.jpg,a\n1.jpg,b\n", "begins with 0.jpg, a, which are not column names")]
)
def test_a_table_without_names_of_columns_is_told_to_have_them(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(raw(tmp_path, text))
    assert "image,label" in caught.value.hint


def test_an_image_listed_again_with_another_label_is_noted(tmp_path: Path) -> None:
    text = "image,label\n0.jpg,a\n1.jpg,b\n2.jpg,b\n0.jpg,b\n1.jpg,b\n"
    (note,) = [note for note in read(raw(tmp_path, text)).notes if "again" in note]
    assert note.startswith("1 image is listed again with another label, and the first counts, e.g. 0.jpg")
    assert not any("again" in note for note in read(tmp_path / "t.csv", task="multilabel").notes)
