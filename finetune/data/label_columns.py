"""Several columns of a table as labels: each is a class, marked 0 or 1 in every row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.tasks import BETWEEN_LABELS
from finetune.wording import counted, listed

PART = re.compile(r"'([^']*)'|\"([^\"]*)\"|(-?\d+)")  # of a list that is written as text: a name, or a number
LIST = re.compile(rf"\[\s*(?:(?:{PART.pattern})(?:[\s,]+(?:{PART.pattern}))*[\s,]*)?\]")
SAYS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def label_columns(label: str, columns: Sequence[str]) -> list[str]:
    """Return the columns that a recipe names as labels: one, also where its name has a comma, or several."""
    if label in columns:
        return [label]
    return [part.strip() for part in label.split(",") if part.strip()] or [label]


def cell_text(cell: Any) -> str:
    """Return a cell as text; None and NaN are empty, 0 is not."""
    return "" if cell is None or cell != cell else str(cell).strip()


def join_columns(path: Path, rows: list[dict[str, Any]], labels: Sequence[str], key: str) -> list[str]:
    """Store the classes of every row, joined by |, under one key, and return notes on them.

    Raises:
        DataError: a cell that is neither 0 nor 1, or a column whose name has |.
    """
    wrong = next((name for name in labels if BETWEEN_LABELS in name), None)
    if wrong is not None:
        raise DataError(f"{path}: the column {wrong!r} has {BETWEEN_LABELS!r} in its name", hint="Rename it.")
    counts = dict.fromkeys(labels, 0)
    for number, row in enumerate(rows, 2):
        has = [name for name in labels if _says(path, number, name, row[name])]
        for name in has:
            counts[name] += 1
        row[key] = BETWEEN_LABELS.join(has)
    never = [name for name, count in counts.items() if not count]
    if not never:
        return []
    return [f"{counted(len(never), 'label column is', 'label columns are')} 0 in every row: no class ({listed(never)})"]


def join_lists(path: Path, rows: Sequence[dict[str, Any]], label: str) -> bool:
    """Join the classes of every row by |, where each label is a list of them; return whether that is so.

    Raises:
        DataError: a class whose name has |.
    """
    lists = [_list_in(row[label]) for row in rows]
    if not any(lists) or any(found is None and cell_text(row[label]) for found, row in zip(lists, rows, strict=True)):
        return False
    for found, row in zip(lists, rows, strict=True):
        if wrong := next((name for name in found or () if BETWEEN_LABELS in name), None):
            raise DataError(f"{path}: the class {wrong!r} has {BETWEEN_LABELS!r} in its name", hint="Rename it.")
        row[label] = BETWEEN_LABELS.join(found or ())
    return True


def _list_in(cell: Any) -> list[str] | None:
    """Return the classes in a cell that is a list, also one written as text (['a', 'b'], [0, 2]); None for others."""
    if isinstance(cell, list | tuple):
        return [cell_text(part) for part in cell]
    text = cell_text(cell)
    if not LIST.fullmatch(text):
        return None
    return [next(filter(None, parts), "").strip() for parts in PART.findall(text[1:-1])]


def _says(path: Path, number: int, column: str, cell: Any) -> bool:
    text = cell_text(cell)
    if text.casefold() not in SAYS:
        raise DataError(
            f"{path} line {number}: the label column {column!r} is {text!r}, neither 0 nor 1",
            hint="Several label columns are classes that an image has (1) or has not (0). A number stands in one"
            " column: name it alone.",
        )
    return SAYS[text.casefold()]
