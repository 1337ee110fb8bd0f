"""A table of images as rows: CSV, TSV or Parquet, with a column of files and one of labels."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from finetune.csv_cells import MARK, unguarded_cell
from finetune.data.delimited import open_delimited
from finetune.data.label_columns import cell_text, join_columns, join_lists, label_columns
from finetune.data.listing import NO_IMAGE, SPLIT_NAMES, Listing, Row, folded, holds, normal, split_of
from finetune.data.parquet_files import open_parquet, read_by_pyarrow
from finetune.data.places import HUB
from finetune.data.split_columns import name_flags, split_fault, unobeyed
from finetune.data.tree import folders_below
from finetune.errors import DataError, FinetuneError, RecipeError, did_you_mean
from finetune.images.names import is_image_name
from finetune.tasks import BETWEEN_LABELS
from finetune.types import Problem
from finetune.wording import counted, listed

InFolder = Callable[[Path], dict[str, str]]
MISSING = "no such file"
BEYOND: Any = None  # the key of the cells of a row that no column names
MOST_LOOKED_AT = 100_000  # files and folders beside a table, on top of those that it names
MOST_FOLDERS = 50  # folders beside a table in which a file that it names is looked for


def read_table(path: Path, image: str, label: str, split: str, group_by: str, *, needs_split: bool) -> Listing:
    """Return the images that a table lists, with their labels, splits and groups.

    With `needs_split` a column of splits that would not be obeyed is an error, else a note.

    Raises:
        DataError: it cannot be read, has a column twice, or none of its files is there.
        RecipeError: it lacks a column, or its splits stand in one of another name.
    """
    columns, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _delimited(path)
    listing = Listing()
    labels = label_columns(label, columns)
    for key, column in (("data.image_column", image), *(("data.label_column", column) for column in labels)):
        if column not in columns:
            raise _no_column(path, columns, column, key)
    for column in dict.fromkeys((image, *labels, split, group_by)):
        _check_column(listing, path, columns, column)
    if len(labels) > 1:
        listing.is_joined, listing.notes = True, listing.notes + join_columns(path, rows, labels, label)
    else:
        listing.is_joined = join_lists(path, rows, label)
    listing.notes += _overlong(rows)
    odd = next((cell for row in rows if isinstance(cell := row[image], (bytes, dict, list))), None)
    if odd is not None:
        raise DataError(
            f"{path}: its column {image!r} holds not file names, but {type(odd).__name__}",
            hint=f"Write images inside a table as shards first: finetune shard {HUB}{path} --out shards; then"
            " wds:shards is the data.",
        )
    others = {image, *labels, group_by}
    fault = split_fault(path, columns, rows, split, others)
    if fault and needs_split:
        raise fault
    listing.notes += [fault.message] if fault else unobeyed(columns, rows, split, others)
    name_flags(rows, split)
    in_folder = cache(_by_form)
    for number, row in enumerate(rows, 2):
        _add_row(listing, path, number, row, (image, label, split, group_by), in_folder)
    _tell_missing(listing, path)
    outside = [row.file for row in listing.rows if _is_outside(path.parent, row.file)]
    if outside:
        images = counted(len(outside), "image lies", "images lie")
        listing.notes.append(f"{images} outside the table's folder, e.g. {outside[0]}")
    has_several = any(BETWEEN_LABELS in row.label for row in listing.rows)
    listing.is_exclusive = listing.is_joined and not (listing.unlabelled or listing.repeated or has_several)
    listing.notes += _unnamed(listing, path.parent)
    return listing


def _overlong(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield how many rows have more cells than there are columns, as with a comma in a name that is not quoted."""
    found = [(number, more) for number, row in enumerate(rows, 2) if any(more := row.get(BEYOND) or [])]
    if found:
        number, more = found[0]
        yield (
            f"{counted(len(found), 'row has', 'rows have')} more cells than there are columns, and what is beyond is"
            f" ignored, e.g. {more[0]!r} in row {number}: a cell that holds a comma stands in quotes"
        )


def _no_column(path: Path, columns: list[str], column: str, key: str) -> FinetuneError:
    """Return the error for a table that lacks a column, with what it has instead."""
    if not columns:
        return DataError(f"{path} is empty", hint="A table begins with its column names: image,label.")
    if any(is_image_name(name) for name in columns):
        return DataError(
            f"{path} begins with {', '.join(columns)}, which are not column names",
            hint="Add a first line that names them: image,label.",
        )
    return RecipeError(
        f"{path} has no column {column!r}.{did_you_mean(column, columns)}",
        hint=f"It has {', '.join(filter(None, columns))}. Name the right one with --set {key}=NAME.",
    )


def _check_column(listing: Listing, path: Path, columns: list[str], column: str) -> None:
    """Refuse a column that is there twice; note one whose name differs only in case."""
    if columns.count(column) > 1:
        places = " and ".join(str(place) for place, name in enumerate(columns, 1) if name == column)
        raise DataError(
            f"{path} has {columns.count(column)} columns named {column!r} (columns {places})",
            hint="Rename or remove all but one.",
        )
    alike = [name for name in columns if name != column and name.casefold() == column.casefold()]
    if column in columns and alike:
        listing.notes.append(f"of the columns {listed([column, *alike])}, which differ only by case, {column} is taken")


def _is_outside(root: Path, file: str) -> bool:
    """Return whether a file named by a table is outside its folder; links are not resolved."""
    if not Path(file).is_absolute() and ".." not in file:
        return False
    top = os.path.normpath(root.absolute())
    return not Path(os.path.normpath(Path(top, file))).is_relative_to(top)


def _add_row(
    listing: Listing, path: Path, number: int, row: dict[str, Any], names: tuple[str, ...], in_folder: InFolder
) -> None:
    file, label, split, group = (cell_text(row.get(name)) for name in names)
    if not file:
        listing.problems.append(Problem(f"{path.name} line {number}", NO_IMAGE, is_of_row=True))
        return
    if split and not split_of(split):
        raise DataError(
            f"{path} line {number}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}",
            hint="An empty split is allowed: such images are divided by --val and --test.",
        )
    is_there = holds((path.parent / file).is_file)
    if not is_there and (other := _in_other_form(path.parent, file, in_folder)):
        file, is_there = other, holds((path.parent / other).is_file)
    if not label and is_there and file not in listing.files:
        listing.unlabelled.setdefault(file, Row(file, label, split_of(split), normal(group) or None))
    elif not label:
        listing.problems.append(Problem(file, listing.no_label, is_of_row=True))
    elif not is_there:
        listing.problems.append(Problem(file, MISSING, is_of_row=True))
    elif file in listing.files:
        reason = f"listed again in line {number} ({label}); the first time counts"
        again = Problem(file, reason, is_of_row=True)
        listing.problems.append(again)
        listing.problems_repeated.append(again)
        listing.repeated.append(Row(file, label))
    else:
        listing.files.add(file)
        listing.rows.append(Row(file, label, split_of(split), normal(group) or None))


def _tell_missing(listing: Listing, path: Path) -> None:
    """Note how many rows name a missing file, where the first was looked for, and what is there instead.

    Raises:
        DataError: all rows do.
    """
    missing = [problem.file for problem in listing.problems if problem.reason == MISSING]
    if not missing:
        return
    near = next((f"{file!r}: there is {other!r}" for file in missing[:20] if (other := _near(path.parent, file))), "")
    place = Path(os.path.normpath((path.parent / missing[0]).absolute()))
    if not listing.rows and not listing.unlabelled:
        rows = "The file of its one row" if len(missing) == 1 else f"None of the files of its {len(missing):,} rows"
        raise DataError(
            f"{path}: {rows[0].lower()}{rows[1:]} is {'not ' if len(missing) == 1 else ''}there; looked for {place}",
            hint=(f"Instead of {near}. " if near else "")
            + "Files are looked for from the folder of the table, with / between folders and their full name.",
        )
    listing.notes.append(
        f"{len(missing):,} of {len(missing) + len(listing.rows):,} rows {'names' if len(missing) == 1 else 'name'}"
        f" a file that is not there, e.g. {place}" + (f"; instead of {near}" if near else "")
    )


def _unnamed(listing: Listing, root: Path) -> Iterator[str]:
    """Yield how many images below the table's folder are not in the table; in a huge folder, how many of those seen."""
    real = cache(lambda folder: os.path.realpath(Path(root, folder)))
    named = (
        os.path.split(file)
        for file in (*listing.files, *listing.unlabelled, *(problem.file for problem in listing.problems))
    )
    known = {(real(folder), name) for folder, name in named}
    count, example, left = 0, "", MOST_LOOKED_AT + len(known)
    for inside, names in folders_below(root, lambda _: None):
        here = real(inside)
        others = [name for name in names if is_image_name(name) and (here, name) not in known]
        example = example or next((str(PurePath(inside, name)) for name in others), "")
        count, left = count + len(others), left - len(names) - 1
        if left < 0:
            break
    if count:
        images = "at least " * (left < 0) + counted(count, "image lies", "images lie")
        yield f"{images} beside the table but in no row: left out, e.g. {example}"


def _in_other_form(root: Path, file: str, in_folder: InFolder) -> str | None:
    """Return the file of the same name in another Unicode form, where there is one."""
    here, parts = root, Path(file).parts
    if file.isascii():
        return None
    for part in parts:
        here /= part if part in ("..", here.anchor) else in_folder(here).get(normal(part), part)
    other = here.as_posix() if Path(file).is_absolute() else os.path.relpath(here, root)
    return other if holds(here.is_file) else None


def _by_form(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their normal Unicode form; none if it cannot be read."""
    try:
        return {normal(entry.name): entry.name for entry in os.scandir(folder)}
    except (OSError, ValueError):
        return {}


def _near(root: Path, file: str) -> str | None:
    """Return the file that may be meant: with another case, an ending, / for \\, below another folder, or nearer."""
    parts = tuple(part for part in file.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    try:
        beside = sorted(entry.name for entry in os.scandir(root) if holds(entry.is_dir))[:MOST_FOLDERS]
    except OSError:
        return None
    for start in range(len(parts)):
        for folder in ("", *beside):
            rest = _step(root / folder, parts[start:])
            if rest:
                return f"{folder}/{rest}" if folder else rest
    return None


def _step(root: Path, parts: tuple[str, ...]) -> str | None:
    """Return the path below a folder with these parts, ignoring case; the last may lack its extension."""
    here = root
    taken: list[str] = []
    for place, part in enumerate(parts):
        try:
            names = sorted(entry.name for entry in os.scandir(here))
        except (OSError, ValueError):
            return None
        name = next((name for name in names if folded(name) == folded(part)), None)
        if name is None and place == len(parts) - 1:
            stems = {folded(part), folded(Path(part).stem if is_image_name(part) else part)}
            name = next((name for name in names if is_image_name(name) and folded(Path(name).stem) in stems), None)
        if name is None:
            return None
        here, taken = here / name, [*taken, name]
    return "/".join(taken) if taken and holds(here.is_file) else None


def _delimited(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with open_delimited(path) as (stream, sign):
        reader = csv.DictReader(stream, delimiter=sign)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return list(reader.fieldnames), [_unguarded(row) for row in reader]


def _unguarded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the original names if `check --groups` guarded them against spreadsheets."""
    column, mark = MARK
    if row.get(column) != mark:
        return row
    return {key: unguarded_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()}


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with read_by_pyarrow(path):
        table = open_parquet(path).read()
    is_unique = max(Counter(table.column_names).values(), default=1) == 1
    return table.column_names, table.to_pylist() if is_unique else _by_position(table)


def _by_position(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a table with a name twice, which `to_pylist` refuses; the first column of a name counts."""
    cells = {name: table.column(place).to_pylist() for place, name in reversed(list(enumerate(table.column_names)))}
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
