"""Columns of a table that say a split, under the name that is obeyed or another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.label_columns import SAYS, cell_text
from finetune.data.listing import split_of
from finetune.errors import RecipeError, did_you_mean
from finetune.types import Split
from finetune.wording import listed

USUAL_SPLIT = "split"  # the default column of splits, which need not be there
NO_COLUMN = "none"
PARTS = frozenset({"split", "splits", "fold", "folds", "kfold", "set", "subset", "partition", "phase", "usage"})
MOST_PARTS = 20  # values of a column that may divide images

Rows = Sequence[dict[str, Any]]


def split_fault(path: Path, columns: Sequence[str], rows: Rows, split: str, others: set[str]) -> RecipeError | None:
    """Return the error for a column of splits that is named and not there, or there and not named."""
    if split in columns or split == NO_COLUMN:
        return None
    none = f"--set data.split_column={NO_COLUMN} goes without."
    if split != USUAL_SPLIT:
        return RecipeError(
            f"{path} has no column {split!r}.{did_you_mean(split, columns)}",
            hint=f"It has {', '.join(columns)}. Name the column of splits with --set data.split_column=NAME; {none}",
        )
    for column in columns:
        words = {cell_text(row.get(column)) for row in rows} - {""}
        if column in others or len(words) < 2:
            continue
        flagged = _flagged(column, words)
        if flagged or all(map(split_of, words)):
            obeyed = f"--set data.split_column={column} uses it"
            if flagged == "train":
                obeyed = f"Write a column {USUAL_SPLIT!r} with train, and with val or test for the others"
            return RecipeError(
                f"{path}: the column {column!r} holds {' and '.join(sorted(words))}, but is not named {split!r}",
                hint=f"{obeyed}; {none}",
            )
    return None


def unobeyed(columns: Sequence[str], rows: Rows, split: str, others: set[str]) -> Iterator[str]:
    """Yield which columns are named as if they divided the images, and do not."""
    if split in columns or split == NO_COLUMN:
        return
    for column in columns:
        if column in others or column.casefold() not in PARTS:
            continue
        values = {cell_text(row.get(column)) for row in rows} - {""}
        if 2 <= len(values) <= MOST_PARTS:
            yield (
                f"the column {column!r} ({listed(sorted(values), most=4)}) divides nothing here: splits are train, val"
                f" and test; --group-by {column} keeps what has one value in one split"
            )


def name_flags(rows: Rows, split: str) -> None:
    """Put names of splits into a column such as is_valid, where every cell says yes or no: its split, or train."""
    flagged = _flagged(split, {cell_text(row.get(split)) for row in rows})
    if flagged in ("val", "test"):
        for row in rows:
            row[split] = flagged if SAYS[cell_text(row[split]).casefold()] else "train"


def _flagged(column: str, words: set[str]) -> Split | None:
    """Return the split of which a column says yes or no; None if it says something else."""
    return split_of(column, besides="is") if {word.casefold() for word in words} <= SAYS.keys() else None
