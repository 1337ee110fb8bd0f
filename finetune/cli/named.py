"""The output of `finetune predict`: its form and where it goes, tables and JSON, and how many images there were."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from finetune.cli import tables
from finetune.cli.terminal import Console
from finetune.errors import DataError, RecipeError
from finetune.whole import check_new_place
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.evaluation.named import Prediction
    from finetune.evaluation.prediction_rows import AnswerLayout

ROWS_AT_ONCE = 1000  # of a table: it is as wide as its widest cell, which is known when all are there


class FormName(StrEnum):
    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    parquet = "parquet"


SUFFIXES = tuple(f".{form}" for form in FormName)


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of predictions (a name of `WRITERS`, "table" or "json"), and the file that they go to, or stdout.

    That is stdout as it is now: while a bar is drawn, rich has another in its place.
    """

    form: str
    file: Path | None = None
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def is_quiet(self) -> bool:
        """Whether a bar would be drawn between the rows, or only JSON is wanted."""
        return self.form == "json" or (self.file is None and self.form != "table" and self.stdout.isatty())


def shape_of(out: Path | None, form: str | None, *, is_csv: bool, is_json: bool) -> Shape:
    """Return the shape asked for.

    Raises:
        RecipeError: two of them, a file of no known form, or Parquet without its package or without a file.
        ResourceError: the file is there already, or its folder is not.
    """
    if is_json and is_csv:
        raise RecipeError("--csv and --json are two output formats", hint="Give one of them.")
    if (is_csv and form not in (None, "csv")) or (is_json and (form or out)):
        other = "--format" if form else "--out"
        raise RecipeError(f"{'--json' if is_json else '--csv'} and {other} are two output formats", hint="Give one.")
    named = form or ("csv" if is_csv else None)
    if out is None:
        if named == "parquet" and sys.stdout.isatty():
            raise RecipeError("Parquet cannot be printed to a terminal", hint="Name a file: --out FILE.parquet.")
        found = Shape(named or ("json" if is_json else "table"))
    else:
        found = Shape(named or _form_of(out), out)
        check_new_place(out)
    if found.form == "parquet":
        from finetune.evaluation.prediction_files import check_parquet

        check_parquet()
    return found


def _form_of(out: Path) -> str:
    if out.suffix.lower() not in SUFFIXES:
        raise RecipeError(
            f"{out} does not end in {', '.join(SUFFIXES)}",
            hint="Say which format: --format csv, tsv, jsonl or parquet.",
        )
    return out.suffix.lower()[1:]


class Tally:
    """How many images were named, and the first that was not."""

    def __init__(self) -> None:
        self.num_named = self.num_unread = 0
        self.first: Prediction | None = None

    def __call__(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield the predictions, counted."""
        for prediction in predictions:
            self.num_named += not prediction.problem
            self.num_unread += bool(prediction.problem)
            self.first = self.first or (prediction if prediction.problem else None)
            yield prediction

    def said(self) -> str:
        """Return how many there were, in words."""
        unread = f", of which {self.num_unread:,} cannot be read" * bool(self.num_unread)
        return f"{counted(self.num_named + self.num_unread, 'image')}{unread}"

    def check(self) -> None:
        """Check that at least one image was named.

        Raises:
            DataError: none could be read.
        """
        if self.first is not None and not self.num_named:
            what = counted(self.num_unread, "image")
            text = f"none of {what} can be read" if self.num_unread > 1 else f"{self.first.file} cannot be read"
            first = f"{self.first.file}: " if self.num_unread > 1 else ""
            raise DataError(text, hint=f"{first}{self.first.problem}")


def print_json_document(predictions: Iterable[Prediction]) -> None:
    """Print all predictions as one JSON document."""
    tables.print_json([prediction.to_json() for prediction in predictions])


def print_tables(predictions: Iterable[Prediction], layout: AnswerLayout, stdout: TextIO) -> None:
    """Print predictions as a table; very many, in a file, as several tables below each other."""
    rows, is_first = iter(predictions), True
    console, what = Console(file=stdout), layout.columns()[1].rstrip("1")
    while some := list(islice(rows, None if stdout.isatty() else ROWS_AT_ONCE)):
        cells = [(one.file, one.problem or _said(one, layout)) for one in some]
        console.print(tables.table(["file", what], cells, words=[what], has_header=is_first))
        is_first = False


def _said(prediction: Prediction, layout: AnswerLayout) -> str:
    likely = "  ".join(prediction.likely)
    if layout.has_scores and layout.task == "classify":
        likely = "  ".join(f"{name} {share:.3f}" for name, share in prediction.scores.items())
    return f"unsure, {prediction.unsure}: {likely}" if prediction.unsure else likely
