"""A table as text: its encoding, what separates its columns, and whether it begins with their names."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from finetune.errors import DataError

SEPARATED = re.compile(r"\ufeff?\"?sep=(.)\"?\r?\n?")  # the line that Excel takes the separator from
COMMENT = "#"


@contextmanager
def open_delimited(path: Path, *, errors: str = "strict") -> Iterator[tuple[TextIO, str]]:
    """Yield a table, from the line of its column names on, and what separates them.

    It is UTF-8, or UTF-16 if it begins with the mark of that. With `errors` "surrogateescape" other bytes stay, as in
    the names of files.

    Raises:
        DataError: it cannot be read, or begins with a comment.
    """
    try:
        with path.open(newline="", encoding=_encoding(path), errors=errors) as stream:
            sign = _separator_of(path, stream)
            _refuse_comment(path, stream, sign)
            yield stream, sign
    except UnicodeDecodeError as error:
        raise _undecodable(path, error) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _separator_of(path: Path, stream: TextIO) -> str:
    """Return the separator of the columns of a table: a tab in TSV, else a comma or what its first line has.

    Spreadsheets write semicolons wherever the comma is that of decimal numbers; a line `sep=;`, which says so, is read.
    """
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = stream.readline()
    if said := SEPARATED.fullmatch(first):
        return said[1]
    stream.seek(0)
    return "," if "," in first else next((sign for sign in ";\t|" if sign in first), ",")


def _refuse_comment(path: Path, stream: TextIO, sign: str) -> None:
    """Refuse a table that begins with a comment: a line with # and other columns than the first line without it.

    Raises:
        DataError: it does.
    """
    start = stream.tell()
    first = line = stream.readline()
    while line.startswith(COMMENT):
        line = stream.readline()
    stream.seek(start)
    if first.startswith(COMMENT) and line and first.count(sign) != line.count(sign):
        raise DataError(
            f"{path} begins with a comment: {first.strip()!r}",
            hint="Remove what is above the line of the column names (image,label).",
        )


def _undecodable(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the error of a table in another encoding, with its first line that is."""
    place = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                text = line[max(wrong.start - 10, 0) : wrong.end + 10].strip()
                place = f" line {number} is not UTF-8: {text!r}"
                break
    return DataError(
        f"{path}{place or f' cannot be read as a table: {error}'}",
        hint='Save it as UTF-8: as "CSV UTF-8" in Excel, or: iconv -f cp1252 -t utf-8 OLD.csv > NEW.csv',
    )
