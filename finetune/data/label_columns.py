"""Several columns of a table as labels: each is a class, marked 0 or 1 in every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.tasks import BETWEEN_LABELS
from finetune.wording import counted, listed

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


def _says(path: Path, number: int, column: str, cell: Any) -> bool:
    text = cell_text(cell)
    if text.casefold() not in SAYS:
        raise DataError(
            f"{path} line {number}: the label column {column!r} is {text!r}, neither 0 nor 1",
            hint="Several label columns are classes that an image has (1) or has not (0). A number stands in one"
            " column: name it alone.",
        )
    return SAYS[text.casefold()]
