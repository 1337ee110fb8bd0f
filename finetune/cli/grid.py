"""Tables that fit a terminal of any width: no word, number or interval is cut, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from finetune.cli.terminal import longest_word, wrapped

GAP = 2  # cells between two columns
ROOM = 20  # cells that are enough for the first column, where what is longer gets lines of its own


@dataclass(frozen=True)
class Column:
    """A header, and cells that are broken between words, or never."""

    header: str
    cells: Sequence[str]
    is_broken: bool = False
    is_left: bool = False

    def widest(self) -> int:
        """Return the width at which no line breaks."""
        return max(map(cell_len, (self.header, *self.cells)))

    def least(self) -> int:
        """Return the width at which no word of the header breaks, and nothing that must stay whole."""
        measure = longest_word if self.is_broken else cell_len
        return max(longest_word(self.header), *map(measure, self.cells), 0)


@dataclass(frozen=True)
class Grid:
    """Columns that are laid out when they are printed and the width is known.

    Where they do not fit as they are, in this order: columns are broken between words; cells of the first column
    that are too long get lines of their own; columns are left out, those that `drop` names first, which a line tells.
    """

    columns: Sequence[Column]
    title: str = ""
    drop: Sequence[str] = ()
    has_header: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shown, widths = self._fitted(options.max_width)
        if self.title:
            yield wrapped(Text(self.title, "italic"), options.max_width)
        for place in range(0 if self.has_header else 1, len(self.columns[0].cells) + 1):
            yield from shown._row(place, widths)
        left = [column.header for column in self.columns if column not in shown.columns]
        if left:
            note = f"hidden at this width: {', '.join(left)}; a wider terminal or a file shows all"
            yield wrapped(Text(note, "dim"), options.max_width)

    def _fitted(self, width: int) -> tuple[Grid, list[int]]:
        """Return the columns that are shown, and the width of each."""
        columns = list(self.columns)
        least_wanted = [*self.drop] + [column.header for column in reversed(columns[2:])]
        for name in ("", *least_wanted):
            columns = [column for column in columns if column.header != name or column is columns[0]]
            shown = replace(self, columns=columns)
            widths = shown._widths(width) or shown._widths_beside_long(width, at_least=ROOM)
            if widths is not None:
                return shown, widths
        return shown, shown._widths_beside_long(width, at_least=0) or [0] + [width - GAP] * (len(columns) - 1)

    def _widths(self, width: int) -> list[int] | None:
        """Return the width of each column; None if not even the least widths fit."""
        widths, least = [column.widest() for column in self.columns], [column.least() for column in self.columns]
        over = sum(widths) + GAP * (len(widths) - 1) - width
        while over > 0:
            place = max(range(len(widths)), key=lambda at: (widths[at] > least[at], widths[at]))
            if widths[place] <= least[place]:
                return None
            widths[place] -= 1
            over -= 1
        return widths

    def _widths_beside_long(self, width: int, *, at_least: int) -> list[int] | None:
        """Return the widths when the first column gets what the others leave; None if that is less than `at_least`."""
        rest = replace(self, columns=self.columns[1:])._widths(width - at_least - GAP)
        if rest is None:
            return None
        return [width - sum(rest) - GAP * len(rest), *rest]

    def _row(self, place: int, widths: Sequence[int]) -> Iterator[Text]:
        cells = [column.header if place == 0 else column.cells[place - 1] for column in self.columns]
        style = "bold" if place == 0 else ""
        if place > 0 and cell_len(cells[0]) > widths[0]:
            yield Text(cells[0].rstrip())
            cells[0] = ""
        can_break = [place == 0 or column.is_broken for column in self.columns]
        broken = [
            wrapped(Text(cell), most).plain.split("\n") if can else [cell]
            for cell, most, can in zip(cells, widths, can_break, strict=True)
        ]
        for parts in zip_longest(*broken, fillvalue=""):
            aligned = (_aligned(*each) for each in zip(self.columns, parts, widths, strict=True))
            yield Text((" " * GAP).join(aligned).rstrip(), style)


def _aligned(column: Column, part: str, width: int) -> str:
    space = " " * (width - cell_len(part))
    return part + space if column.is_left else space + part
