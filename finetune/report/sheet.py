"""A contact sheet: images in rows under headings, each with a few lines below it, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.images.decode import UndecodableError, read_rgb
from finetune.whole import whole_file

ACROSS, SIDE, GAP = 6, 180, 12  # an even number across: pairs stay together
TEXT, LINE, HEADING = 13, 17, 30  # pixels: size of letters, of a line, of a heading
INK, PALE, PAPER = "#202020", "#d8d8d8", "white"


@dataclass(frozen=True, slots=True)
class Cell:
    """One image, or the file of one, and the lines below it."""

    file: Path | Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SheetSection:
    """Images under a heading."""

    title: str
    cells: tuple[Cell, ...]


def write(path: Path, sections: Sequence[SheetSection]) -> None:
    """Draw a contact sheet and write it beside its place, then rename it.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with whole_file(path) as beside:
        draw(sections).save(beside, format="PNG")


def draw(sections: Sequence[SheetSection]) -> Image.Image:
    """Return the contact sheet of sections; an image that cannot be read is an empty frame."""
    font, bold = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT + 3)
    heights = [HEADING + sum(_row_height(row) for row in _rows(section)) for section in sections]
    sheet = Image.new("RGB", (GAP + ACROSS * (SIDE + GAP), GAP + max(sum(heights), HEADING)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for section in sections:
        pen.text((GAP, top), _fitted(section.title, bold, sheet.width - 2 * GAP), INK, bold)
        top += HEADING
        for row in _rows(section):
            for column, cell in enumerate(row):
                left = GAP + column * (SIDE + GAP)
                _put(sheet, cell.file, left, top)
                for place, line in enumerate(cell.lines):
                    pen.text((left, top + SIDE + 4 + place * LINE), _fitted(line, font, SIDE), INK, font)
            top += _row_height(row)
    return sheet


def _rows(section: SheetSection) -> list[tuple[Cell, ...]]:
    return [section.cells[start : start + ACROSS] for start in range(0, len(section.cells), ACROSS)]


def _row_height(row: Sequence[Cell]) -> int:
    return SIDE + GAP + LINE * max(len(cell.lines) for cell in row)


def _put(sheet: Image.Image, file: Path | Image.Image, left: int, top: int) -> None:
    ImageDraw.Draw(sheet).rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=PALE)
    try:
        picture = read_rgb(file, side=SIDE) if isinstance(file, Path) else file
    except UndecodableError:
        return
    share = (SIDE - 2) / max(picture.size)
    width, height = (max(1, round(pixels * share)) for pixels in picture.size)
    kind = Image.Resampling.BICUBIC if share < 1 else Image.Resampling.NEAREST
    small = picture.resize((width, height), kind)
    sheet.paste(small, (left + (SIDE - width) // 2, top + (SIDE - height) // 2))


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text, without its middle if it is too wide: the end of a file's name tells most."""
    if font.getlength(text) <= width:
        return text
    for kept in range(min(len(text), width) // 2, 0, -1):
        short = f"{text[:kept]}…{text[-kept:]}"
        if font.getlength(short) <= width:
            return short
    return ""
