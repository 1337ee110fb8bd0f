"""Predictions as CSV, TSV, JSON lines or Parquet: written as they come, a row or a group of rows at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from finetune.csv_cells import guarded_cell
from finetune.errors import RecipeError
from finetune.evaluation.named import Prediction
from finetune.evaluation.prediction_rows import AnswerLayout, Cell
from finetune.wording import as_json

ROWS_AT_ONCE = 1024  # of a group of Parquet

Write = Callable[[Iterable[Prediction], AnswerLayout, BinaryIO], None]


def write_csv(predictions: Iterable[Prediction], layout: AnswerLayout, stream: BinaryIO) -> None:
    """Write CSV; each feature has a column. Names that are no UTF-8 keep their bytes, as in the run folder's files."""
    _write_delimited(predictions, layout, stream, ",")


def write_tsv(predictions: Iterable[Prediction], layout: AnswerLayout, stream: BinaryIO) -> None:
    """Write TSV, as `write_csv` does CSV."""
    _write_delimited(predictions, layout, stream, "\t")


def write_jsonl(predictions: Iterable[Prediction], layout: AnswerLayout, stream: BinaryIO) -> None:
    """Write one JSON object a line; escaped where it holds names that are no UTF-8."""
    for prediction in predictions:
        stream.write(f"{as_json(prediction.to_json())}\n".encode())
        stream.flush()


def write_parquet(predictions: Iterable[Prediction], layout: AnswerLayout, stream: BinaryIO) -> None:
    r"""Write Parquet; features are one column of lists. Bytes of names that are no UTF-8 are spelt out, as \xff.

    Raises:
        RecipeError: pyarrow is not installed.
    """
    arrow = _pyarrow()
    from pyarrow import parquet

    names = layout.columns()
    texts = [layout.has_text(name) for name in names]
    number = arrow.float64() if layout.task == "regress" else arrow.float32()
    fields = [(name, arrow.string() if text else number) for name, text in zip(names, texts, strict=True)]
    if layout.has_features:
        fields.append(("features", arrow.list_(arrow.float32())))
    schema, rows = arrow.schema(fields), iter(predictions)
    with parquet.ParquetWriter(stream, schema) as writer:
        while group := list(islice(rows, ROWS_AT_ONCE)):
            cells = [[_spelt(cell) for cell in layout.cells(one)] for one in group]
            columns: list[Any] = [list(column) for column in zip(*cells, strict=True)]
            if layout.has_features:
                columns.append([one.features for one in group])
            arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def check_parquet() -> None:
    """Check, before anything is computed, that Parquet can be written.

    Raises:
        RecipeError: pyarrow is not installed.
    """
    _pyarrow()


WRITERS: dict[str, Write] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def _write_delimited(predictions: Iterable[Prediction], layout: AnswerLayout, stream: BinaryIO, delimiter: str) -> None:
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="", line_buffering=True)
    try:
        writer = csv.writer(text, delimiter=delimiter)
        num_features, rows = _counted_features(predictions) if layout.has_features else (0, iter(predictions))
        names = layout.columns(num_features)
        forms = ["" if name == "number" else ".7g" if name.startswith("feature") else ".6f" for name in names]
        writer.writerow(names)
        for prediction in rows:
            writer.writerow(map(_delimited_cell, layout.cells(prediction, num_features), forms))
    finally:
        text.detach()


def _counted_features(predictions: Iterable[Prediction]) -> tuple[int, Iterator[Prediction]]:
    """Return how many features an image has, told by the first readable one, and all predictions."""
    rows, before = iter(predictions), []
    for prediction in rows:
        before.append(prediction)
        if prediction.features is not None:
            return len(prediction.features), chain(before, rows)
    return 0, iter(before)


def _delimited_cell(cell: Cell, form: str) -> str:
    if cell is None:
        return ""
    return guarded_cell(cell) if isinstance(cell, str) else f"{cell:{form}}"


def _spelt(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise RecipeError("writing Parquet needs pyarrow", hint='pip install "finetune[parquet]"') from None
    return pyarrow
