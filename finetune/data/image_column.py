"""The column of a table that names images, row by row: CSV, TSV or Parquet, however long, without labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.delimited import open_delimited
from finetune.data.label_columns import cell_text
from finetune.data.parquet_files import open_parquet, read_by_pyarrow
from finetune.errors import DataError, RecipeError, did_you_mean

AUTO = "auto"
USUAL = ("image", "file", "filename", "file_name", "filepath", "path", "image_path", "image_file", "url", "image_url")
ROWS_AT_ONCE = 1024


def count_rows(path: Path) -> int:
    """Return how many rows a table has.

    Raises:
        DataError: it cannot be read.
    """
    if _is_parquet(path):
        return int(open_parquet(path).metadata.num_rows)
    return sum(1 for _ in _delimited(path)) - 1


def check_column(path: Path, column: str) -> str:
    """Return the name of the column of images: the one asked for, or with "auto" the only possible one.

    Raises:
        DataError: the table cannot be read. RecipeError: there is no such column, or no single possible one.
    """
    columns = open_parquet(path).schema_arrow.names if _is_parquet(path) else next(_delimited(path), [])
    wanted = USUAL if column == AUTO else (column,)
    found = [name for like in wanted for name in columns if name == like or (column == AUTO and _same(name, like))]
    if found and columns.count(found[0]) > 1:
        raise DataError(f"{path} has {columns.count(found[0])} columns named {found[0]!r}", hint="Rename the others.")
    if found:
        return str(found[0])
    if column == AUTO and len(columns) == 1:
        return str(columns[0])
    there = f"It has {', '.join(columns)}. Name the right one with --column NAME." if columns else "It is empty."
    if column == AUTO:
        raise RecipeError(f"{path} has no column with a usual name for images ({', '.join(USUAL)})", hint=there)
    raise RecipeError(f"{path} has no column {column!r}.{did_you_mean(column, columns)}", hint=there)


def image_cells(path: Path, column: str) -> Iterator[str | bytes]:
    """Yield the name of an image, or its bytes, for every row; "" where there is neither.

    Raises:
        DataError: the table cannot be read.
    """
    if _is_parquet(path):
        yield from map(_cell, _parquet_cells(path, column))
        return
    rows = _delimited(path)
    place = next(rows).index(column)
    yield from (row[place].strip() if place < len(row) else "" for row in rows)


def _same(name: str, like: str) -> bool:
    return name.casefold().replace(" ", "_").replace("-", "_") == like


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _cell(cell: Any) -> str | bytes:
    """Return a cell of Parquet as a name, or as the bytes that some data sets keep beside it."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes) else cell_text(cell)


def _delimited(path: Path) -> Iterator[list[str]]:
    """Yield the head of a table and its rows, skipping empty lines."""
    with open_delimited(path, errors="surrogateescape") as (stream, sign):
        rows = csv.reader(stream, delimiter=sign)
        head = next(rows, None)
        if head is not None:
            yield [name.strip() for name in head]
            yield from (row for row in rows if row)


def _parquet_cells(path: Path, column: str) -> Iterator[Any]:
    with read_by_pyarrow(path):
        for batch in open_parquet(path).iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
            yield from batch.column(0).to_pylist()
