"""A contact sheet shows every image under its heading, whatever its file and its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.errors import ResourceError
from finetune.report import sheet
from finetune.report.sheet import ACROSS, GAP, HEADING, SIDE, Cell, SheetSection


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def red_columns(drawn: Image.Image, top: int) -> int:
    line = np.asarray(drawn)[top + SIDE // 2]
    return int((np.diff((line == [255, 0, 0]).all(axis=1).astype(int)) == 1).sum())


def test_pictures_stand_in_rows_under_headings(red: Path) -> None:
    cells = tuple(Cell(red, ("a", "b", "c")) for _ in range(ACROSS + 2))
    drawn = sheet.draw([SheetSection("first", cells)])
    row = SIDE + GAP + 3 * sheet.LINE
    assert drawn.size == (GAP + ACROSS * (SIDE + GAP), GAP + HEADING + 2 * row)
    assert [red_columns(drawn, GAP + HEADING + place * row) for place in range(2)] == [ACROSS, 2]


def test_odd_names_and_missing_files_do_no_harm(red: Path, tmp_path: Path) -> None:
    cells = (Cell(tmp_path / "gone.png", ("gone",)), Cell(red, ("猫" * 200, "", "é [bold] <b>")))
    assert red_columns(sheet.draw([SheetSection("x" * 1000, cells)]), GAP + HEADING) == 1


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(sheet.TEXT)
    short = sheet._fitted("class/" + "x" * 100 + "-0042.jpg", font, SIDE)
    assert font.getlength(short) <= SIDE
    assert short.startswith("class/") and short.endswith("-0042.jpg") and "…" in short
    assert sheet._fitted("a.jpg", font, SIDE) == "a.jpg"


def test_a_sheet_is_written_whole_or_not_at_all(red: Path, tmp_path: Path) -> None:
    sheet.write(tmp_path / "s.png", [SheetSection("one", (Cell(red, ("a",)),))])
    assert Image.open(tmp_path / "s.png").format == "PNG"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ResourceError, match="cannot be written"):
        sheet.write(red / "s.png", [])  # a file is no folder
    assert sorted(tmp_path.iterdir()) == before
