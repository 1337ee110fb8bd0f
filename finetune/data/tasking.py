"""Whether an image has one class, several or a number: as asked for, else as the labels of a table suggest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from finetune.data.labels import SIGNS, are_surely_measures
from finetune.data.listing import Listing, Row
from finetune.errors import DataError, RecipeError
from finetune.tasks import BETWEEN_LABELS, Task
from finetune.types import Problem
from finetune.values import TaskName
from finetune.wording import counted, listed

DECIMAL, THOUSANDS = re.compile(r"[+-]?\d+(,\d+)?"), re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
SEPARATORS = (*SIGNS, " ")
CERTAIN = 0.5  # share of the labels holding a separator that name classes which are labels themselves


def settle_task(path: Path, listing: Listing, asked: TaskName, separator: str, *, is_table: bool) -> Task:
    """Return the task, and bring the rows into the form it needs.

    Labels of several classes are joined by | from here on. Images without a label stay where an image may have no
    class, and are problems elsewhere.

    Raises:
        DataError: a label that is not a number, where numbers are asked for.
        RecipeError: several label columns, and another task is asked for than these allow.
    """
    if listing.is_joined:
        _check_joined(listing, asked)
    elif is_table and separator == "auto":
        _read_decimal_commas(path, listing, asked)
    labels = {row.label for row in listing.rows}
    sign = separator if separator != "auto" else _separator(labels) if is_table else None
    task: Task
    if asked != "auto":
        task = asked
    elif listing.is_joined:
        task = "classify" if listing.is_exclusive else "multilabel"
    elif is_table and _names_several(labels, separator, sign):
        task = "multilabel"
    else:
        task = "regress" if is_table and are_surely_measures(listing.rows) else "classify"
    used = BETWEEN_LABELS if listing.is_joined or sign is None else sign
    if asked == "auto":
        listing.notes += _told(task, labels, used, is_joined=listing.is_joined)
    if task == "multilabel":
        _join(listing, used, is_table=is_table)
    else:
        others = (file for file in listing.unlabelled if file not in listing.files)
        listing.problems += [Problem(file, listing.no_label, is_of_row=True) for file in others]
        listing.notes += _contradicted(listing, task)
    if task == "regress":
        _check_numbers(path, listing.rows)
    return task


def _check_joined(listing: Listing, asked: TaskName) -> None:
    """Check that several label columns fit the task that is asked for.

    Raises:
        RecipeError: it is not.
    """
    several = next((row for row in listing.rows if BETWEEN_LABELS in row.label), None)
    if asked == "regress" or (asked == "classify" and several is not None):
        which = f": {several.file} has {listed(several.label.split(BETWEEN_LABELS))}" if several is not None else ""
        raise RecipeError(
            f"several label columns, or lists, mean several classes for an image, which is not {asked}{which}",
            hint="Name one column with --set data.label_column=NAME, or leave out --task.",
        )


def _read_decimal_commas(path: Path, listing: Listing, asked: TaskName) -> None:
    """Put a point in the place of the decimal comma of labels that are numbers, and say so.

    Raises:
        DataError: every comma may as well stand between thousands.
    """
    labels = sorted({row.label for row in listing.rows if "," in row.label})
    if not labels or not all(DECIMAL.fullmatch(row.label) for row in listing.rows):
        return
    numbers = [replace(row, label=row.label.replace(",", ".")) for row in listing.rows]
    is_told = asked == "auto" and _separator({row.label for row in listing.rows}) is None
    if asked != "regress" and not (is_told and are_surely_measures(numbers)):
        return
    point = labels[0].replace(",", ".")
    if all(THOUSANDS.fullmatch(label) for label in labels):
        raise DataError(
            f"{path}: the label {labels[0]!r} may be {point} or {labels[0].replace(',', '')}",
            hint="Write decimals with a point, and nothing between thousands.",
        )
    for row in (*listing.rows, *listing.repeated):
        row.label = row.label.replace(",", ".")
    listing.notes.append(f"labels have decimal commas, read as points: {labels[0]!r} is {point}")


def _contradicted(listing: Listing, task: Task) -> Iterator[str]:
    """Yield how many images are listed again with another label; the first counts."""
    taken = {row.file: row.label for row in listing.rows}
    torn = sorted({row.file for row in listing.repeated if row.label != taken.get(row.file)})
    if torn:
        several = "; --task multilabel gives an image several" if task == "classify" else ""
        yield (
            f"{counted(len(torn), 'image is', 'images are')} listed again with another label, and the first counts,"
            f" e.g. {torn[0]}{several}"
        )


def _separator(labels: set[str]) -> str | None:
    """Return the separator that splits the most labels into classes that are labels themselves; None if none does."""
    known = {sign: sum(1 for label in labels if _is_of(label, sign, labels)) for sign in SEPARATORS}
    holding = {sign: sum(1 for label in labels if sign in label) for sign in SEPARATORS}
    certain = [sign for sign in SEPARATORS if known[sign] and known[sign] >= CERTAIN * holding[sign]]
    return max(certain, key=lambda sign: known[sign], default=None)


def _is_of(label: str, sign: str, labels: set[str]) -> bool:
    return sign in label and labels.issuperset(parted(label, sign))


def parted(label: str, sign: str) -> list[str]:
    """Return the classes that a label names, each once."""
    return list(dict.fromkeys(part for piece in label.split(sign) if (part := piece.strip())))


def _names_several(labels: set[str], separator: str, sign: str | None) -> bool:
    return sign is not None and (separator == "auto" or any(separator in label for label in labels))


def _told(task: Task, labels: set[str], sign: str, *, is_joined: bool) -> Iterator[str]:
    """Yield what was inferred from the labels, unless it is one column with one class for each image."""
    if task == "regress":
        shown = listed(sorted(labels, key=float), most=3)
        yield (f"task regress: the labels look like measurements ({shown}); --task classify makes them classes")
    elif task == "classify" and is_joined:
        yield "task classify: each image has exactly one of the classes; --task multilabel lets it have several or none"
    elif task == "multilabel" and is_joined:
        yield "task multilabel: label columns, or lists, say of each class whether an image has it"
    elif task == "multilabel":
        several = sorted(label for label in labels if sign in label)
        yield (
            f"task multilabel: {counted(len(several), 'label names', 'labels name')} several classes"
            f" with {sign!r} between them, e.g. {several[0]!r}; --task classify takes each as a class of its own"
        )


def _join(listing: Listing, sign: str, *, is_table: bool) -> None:
    """Bring the classes of every image into one form; an image that is listed again has all of its classes.

    Raises:
        DataError: a class has | in its name.
    """
    again: dict[str, list[str]] = {}
    for row in listing.repeated:
        again.setdefault(row.file, []).extend(parted(row.label, sign))
    listing.problems = [problem for problem in listing.problems if problem not in listing.problems_repeated]
    listing.rows += [row for file, row in listing.unlabelled.items() if file not in listing.files]
    for row in listing.rows:
        named = parted(row.label, sign) if is_table else [row.label]
        names = dict.fromkeys([*named, *again.get(row.file, ())])
        wrong = next((name for name in names if BETWEEN_LABELS in name), None)
        if wrong is not None:
            raise DataError(
                f"the class {wrong!r} has {BETWEEN_LABELS!r} in its name, which joins several classes",
                hint="Rename it; or, if it separates classes, --set data.label_separator='|'.",
            )
        row.label = BETWEEN_LABELS.join(names)
    none = sum(1 for row in listing.rows if not row.label)
    if none:
        listing.notes.append(f"{counted(none, 'image has', 'images have')} no class: taken as having none")


def _check_numbers(path: Path, rows: list[Row]) -> None:
    for row in rows:
        try:
            is_number = math.isfinite(float(row.label))
        except ValueError:
            is_number = False
        if not is_number:
            raise DataError(
                f"{path}: the label {row.label!r} of {row.file} is not a number",
                hint="With --task regress every label is a number. Leave a cell empty where none is known."
                + (" Write all of them with a point, or all with a comma." if "," in row.label else ""),
            )
