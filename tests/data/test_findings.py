"""What is wrong with a data set: each finding on the smallest data that has it, and on none that has not."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from finetune.data import sources
from finetune.data.findings import Finding, picture_findings
from finetune.data.grouping import table_of, with_groups
from finetune.data.near_duplicates import Copies
from finetune.errors import DataError, printable
from finetune.images.thumbnails import LOOK
from finetune.tasks import Target
from finetune.types import Manifest, Problem, Sample


def manifest_of(*rows: str, problems: int = 0, are_rows: bool = False) -> Manifest:
    """Make a manifest of rows such as "a.jpg ant train g1": file, class, split (- for none), group."""
    cells = [(*row.split(), "")[:4] for row in rows]
    samples = tuple(
        Sample(file, Target(["ant", "bee"].index(label)), None if part == "-" else part, group or None)
        for file, label, part, group in cells
    )
    bad = tuple(Problem(f"bad{n}.jpg", "the file is empty", is_of_row=are_rows) for n in range(problems))
    return Manifest("/data", ("ant", "bee"), samples, bad)


def found_in(
    manifest: Manifest, *copies: Copies, listed: Manifest | None = None, contrast: float = 50
) -> list[Finding]:
    looks = np.zeros(len(manifest.samples), LOOK)
    looks["contrast"], looks["width"], looks["height"] = contrast, 8, 8
    return picture_findings(listed or manifest, manifest, looks, copies)


BASE = [
    f"{label}{n}.jpg {label} {split}" for label in ("ant", "bee") for n, split in enumerate(("train", "train", "val"))
]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert found_in(manifest_of(*BASE)) == []


def test_copies_on_two_sides_leak_and_the_case_begins_with_one_of_each_side() -> None:
    (finding,) = found_in(manifest_of(*BASE), Copies((0, 1, 2), "near"))
    assert (finding.kind, finding.spoils) == ("leak", True)
    assert finding.text == "1 image is in more than one split: val or test would look too good"
    assert [one.split for one in finding.cases[0].files] == ["train", "val", "train"]
    assert finding.cases[0].facts == {"how": "near"}


def test_a_leak_of_a_split_that_run_makes_says_so_and_names_the_way_out() -> None:
    listed = manifest_of(*(f"{row.rsplit(' ', 1)[0]} -" for row in BASE))
    (finding,) = found_in(manifest_of(*BASE), Copies((0, 2), "near"), listed=listed)
    assert "when `run` divides this data" in finding.text
    assert "--groups" in finding.advice


def test_copies_in_two_classes_are_a_conflict_the_surest_first() -> None:
    (finding,) = found_in(manifest_of(*BASE), Copies((0, 3), "near"), Copies((1, 4), "bytes"))
    assert (finding.kind, finding.spoils) == ("conflict", True)
    assert [case.note for case in finding.cases] == ["same bytes", "near copy"]


def test_copies_in_one_class_and_split_spoil_nothing() -> None:
    (finding,) = found_in(manifest_of(*BASE), Copies((0, 1), "pixels"))
    assert (finding.kind, finding.spoils) == ("copies", False)


def test_copies_that_leak_and_conflict_are_told_twice_and_not_as_harmless() -> None:
    assert [finding.kind for finding in found_in(manifest_of(*BASE), Copies((0, 5), "bytes"))] == ["leak", "conflict"]


def test_a_group_on_two_sides_is_named() -> None:
    (finding,) = found_in(manifest_of("a.jpg ant train p1", "b.jpg ant val p1", *BASE))
    assert (finding.kind, finding.spoils) == ("group-leak", True)
    assert finding.cases[0].facts == {"group": "p1"}


def test_a_class_that_a_split_lacks_is_named_with_the_split() -> None:
    (finding,) = found_in(manifest_of(*BASE[:5]))
    assert (finding.kind, finding.spoils) == ("too-few", True)
    assert [case.note for case in finding.cases] == ["bee: 2 images, none in val"]


@pytest.mark.parametrize(("problems", "spoils"), [(1, False), (2, True)])
def test_damaged_files_spoil_a_result_when_they_are_more_than_a_hundredth(problems: int, spoils: bool) -> None:
    rows = [f"{n}.jpg {'ant' if n % 2 else 'bee'} {'val' if n < 40 else 'train'}" for n in range(120)]
    (finding,) = found_in(manifest_of(*rows, problems=problems))
    assert (finding.kind, finding.spoils) == ("damaged", spoils)
    assert finding.cases[0].files[0].file == "bad0.jpg"


def test_rows_that_are_at_fault_are_not_called_damaged_files() -> None:
    (finding,) = found_in(manifest_of(*BASE, problems=1, are_rows=True))
    assert (finding.kind, finding.spoils) == ("rows", True)
    assert "1 row of 7" in finding.text
    assert "Correct" in finding.advice
    assert "anew" not in finding.advice


def test_blank_pictures_and_imbalance_are_notes() -> None:
    rows = [f"{n}.jpg ant {'val' if n < 4 else 'train'}" for n in range(20)]
    (imbalance,) = found_in(manifest_of(*rows, "b.jpg bee val", "c.jpg bee train"))
    assert (imbalance.kind, imbalance.spoils) == ("imbalance", False)
    assert "ant has 20 images and bee 2" in imbalance.text
    (blank,) = found_in(manifest_of(*BASE), contrast=1)
    assert (blank.kind, len(blank.cases), blank.spoils) == ("blank", 6, False)


def test_what_spoils_a_result_stands_first() -> None:
    found = found_in(manifest_of(*BASE[:5], problems=1), Copies((0, 1), "bytes"), contrast=0)
    assert [finding.spoils for finding in found] == sorted((finding.spoils for finding in found), reverse=True)
    assert {finding.kind for finding in found} == {"too-few", "damaged", "copies", "blank"}


def test_copies_and_groups_join_whether_directly_or_through_others() -> None:
    manifest = manifest_of("a.jpg ant - p1", "b.jpg ant - p1", "c.jpg ant -", "d.jpg bee -", "e.jpg bee - p2")
    joined = with_groups(manifest, [Copies((1, 2), "near"), Copies((3, 4), "near")])
    assert [sample.group for sample in joined.samples] == ["a.jpg", "a.jpg", "a.jpg", "d.jpg", "d.jpg"]


def test_a_table_of_groups_is_read_back_as_it_was(tmp_path: Path) -> None:
    for name in ("x/a, b.jpg", "x/c.jpg", "y/d.jpg", "y/e.jpg"):
        (tmp_path / "imgs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imgs" / name).touch()
    read = sources.read(tmp_path / "imgs")
    (tmp_path / "tables").mkdir()
    text = table_of(with_groups(read, [Copies((0, 1), "near")]), tmp_path / "tables")
    (tmp_path / "tables/t.csv").write_text(text, newline="")
    again = sources.read(tmp_path / "tables/t.csv", group_by="group")
    assert [Path(again.root, s.file).resolve() for s in again.samples] == [
        Path(read.root, s.file) for s in read.samples
    ]
    assert [s.group for s in again.samples] == ["x/a, b.jpg", "x/a, b.jpg", "y/d.jpg", "y/e.jpg"]
    assert [row["label"] for row in csv.DictReader(io.StringIO(text))] == ["x", "x", "y", "y"]


def test_names_of_a_table_of_groups_are_no_formulas_and_are_read_back(tmp_path: Path) -> None:
    classes = ["=cmd|' -C calc'!A0", "'=quoted", "''", "-minus", "plain", "@at", "+plus", "'s"]
    for name in classes:
        (tmp_path / name).mkdir()
        (tmp_path / name / "=x.jpg").touch()
    read = sources.read(tmp_path)
    text = table_of(with_groups(read, []), tmp_path)
    assert not [cell for row in csv.reader(io.StringIO(text)) for cell in row if cell.startswith(("=", "+", "-", "@"))]
    (tmp_path / "t.csv").write_text(text, newline="")
    again = sources.read(tmp_path / "t.csv", group_by="group")
    assert again.classes == read.classes == tuple(sorted(classes))
    assert [s.file for s in again.samples] == [s.file for s in read.samples] == [s.group for s in again.samples]


def test_an_apostrophe_of_a_users_own_table_stays(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("image,label,guarded\na.jpg,'=x,no\nb.jpg,'-y,\n")
    assert sources.read(tmp_path / "t.csv").classes == ("'-y", "'=x")


@pytest.mark.parametrize("name", ["b\udcff.jpg", "b.jpg "])
def test_a_name_that_a_table_would_change_is_an_error(name: str) -> None:
    manifest = Manifest("/data", ("ant",), (Sample(name, Target(0)),))
    with pytest.raises(DataError, match="cannot be written into a table"):
        table_of(manifest, Path("/tables"))


def test_what_a_terminal_would_obey_is_shown_as_an_escape() -> None:
    assert printable("a\x1b[31m\nb\udcff é 猫") == "a\\x1b[31m\\nb\\udcff é 猫"
