"""Names in the cells of CSV files, so that a spreadsheet takes none of them for a formula.

A file or a class may be called `=cmd|' /C calc'!A0`. Such a cell gets an apostrophe in front, and so does
one that begins with an apostrophe already: taking one off gives back what was written. A table that may be
read back among tables of users marks its guarded rows, so that an apostrophe of the user's own stays.
"""

from __future__ import annotations

MARK = ("guarded", "apostrophe")  # column, cell: marks the guarded rows of a table that users may bring too
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guarded_cell(name: str) -> str:
    """Return a name as a cell that is text to every spreadsheet."""
    return f"'{name}" if name.startswith(FORMULA_SIGNS) else name


def unguarded_cell(cell: str) -> str:
    """Return the name that `guarded_cell` made a cell of; files from before guarding existed are read as they are."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_SIGNS) else cell
