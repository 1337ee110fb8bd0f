"""What the user has: a folder of class folders, with or without splits, or a table of images.

    manifest = read("imgs")

Reads names only; pictures are opened by `checks`, splits are made by `split`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.cells import MARK, unguarded
from finetune.data.decode import is_image_name
from finetune.errors import DataError, RecipeError, did_you_mean
from finetune.types import Manifest, Problem, Sample, Split, Target

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IGNORED = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
RUN_FILES = ("recipe.toml", "plan.json")  # a folder that holds both is one of our run folders
TABLES = (".csv", ".tsv", ".parquet")
LAYOUTS = (
    "Expected DIR/<class>/images, DIR/{train,val,test}/<class>/images,"
    " or a CSV, TSV or Parquet file with the columns image and label."
)


@dataclass(slots=True)
class _Row:
    """One image before classes have an index."""

    file: str
    label: str
    split: Split | None = None
    group: str | None = None


@dataclass(slots=True)
class _Found:
    rows: list[_Row] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(
    path: str | Path,
    *,
    image_column: str = "image",
    label_column: str = "label",
    split_column: str = "split",
    group_by: str = "none",
    needs_two_classes: bool = True,
    needs_train: bool = True,
) -> Manifest:
    """Yield the manifest of a folder or table, with the splits it has.

    Class names come from train (or from everything, where there is no split, and without `needs_train`),
    sorted by name.

    Raises:
        DataError: nothing there, no images, fewer than two classes, or a class that train lacks.
        RecipeError: a column that the table lacks, or a regular expression that is none.
    """
    path = Path(path).expanduser()
    if not _holds(path.exists):
        raise DataError(f"no such folder or file: {path}", hint=_nearby(path))
    if path.is_dir():
        root, found = path, _read_folder(path)
    elif path.suffix.lower() in TABLES and path.is_file():
        root = path.parent
        found = _read_table(path, image_column, label_column, split_column, group_by)
    else:
        raise DataError(f"{path} is a file, not a folder of images", hint=LAYOUTS)
    if group_by != "none" and not any(row.group for row in found.rows):
        _group_by_pattern(found, group_by)
    return _manifest(root, path, found, needs_two_classes, needs_train)


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Yield the images among files and in folders, sorted within each folder.

    Raises:
        DataError: a path does not exist, or there are no images at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if _holds(path.is_dir):
            unread: list[OSError] = []
            files += [path / name for name in _walk(path, unread.append)]
            files += [Path(error.filename) for error in unread]  # to be told of in the place of what they hold
        elif _holds(path.exists):
            files.append(path)
        else:
            raise DataError(f"no such file or folder: {path}", hint=_nearby(path))
    if not files:
        raise DataError("no images there", hint=f"Looked in {', '.join(map(str, paths))}.")
    return files


def _holds(claim: Callable[[], bool]) -> bool:
    """Ask whether a path exists, or is a file; no, where that cannot be told: a name too long, a loop of links."""
    try:
        return claim()
    except OSError:
        return False


def _nearby(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return LAYOUTS
    near = did_you_mean(path.name, siblings).strip()
    return f"{near} {LAYOUTS}".strip()


def _read_folder(root: Path) -> _Found:
    folders = _child_folders(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    found = _Found()
    has_splits = bool(splits) and (len(splits) == len(folders) or ("train" in splits.values() and len(splits) > 1))
    if not has_splits:
        _add_classes(found, root, folders, prefix="", split=None)
        return found
    others = [name for name in folders if name not in splits]
    if others:
        found.notes.append(f"left out, beside the splits: {', '.join(others)}")
    for name, split in splits.items():
        _add_classes(found, root, _child_folders(root / name), prefix=f"{name}/", split=split)
    return found


def _add_classes(found: _Found, root: Path, folders: list[str], *, prefix: str, split: Split | None) -> None:
    beside = [entry for entry in os.scandir(root / prefix) if not _is_ignored(Path(entry))]
    loose = sum(is_image_name(entry.name) and _holds(entry.is_file) for entry in beside)
    if loose:
        found.notes.append(f"{loose} images in {prefix or 'the folder itself'} belong to no class and are left out")
    for folder in folders:
        unread: list[OSError] = []
        names = list(_walk(root / prefix / folder, unread.append))
        found.problems += [
            Problem(os.path.relpath(error.filename, root), f"a folder that cannot be read: {error.strerror}")
            for error in unread
        ]
        if not names and not unread:
            found.notes.append(f"no images in {prefix}{folder}")
        found.rows += [_Row(f"{prefix}{folder}/{name}", folder, split) for name in names]


def _child_folders(folder: Path) -> list[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return [entry.name for entry in entries if _holds(entry.is_dir) and not _is_ignored(folder / entry.name)]


def _is_ignored(path: Path) -> bool:
    if path.name.startswith(".") or path.name.lower() in IGNORED:
        return True
    return all(_holds((path / name).is_file) for name in RUN_FILES)


def _walk(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the images below a folder, relative to it, in sorted order; a folder that cannot be read is handed over.

    No folder is walked twice, however often it is linked, and none that the folder itself lies in.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        here = _identity(Path(place))
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not _is_ignored(Path(place, name)))
        inside = os.path.relpath(place, folder)
        for name in sorted(files):
            if is_image_name(name) and not _is_ignored(Path(name)):
                yield Path(inside, name).as_posix()


def _identity(place: Path) -> tuple[int, int]:
    stat = place.stat()
    return stat.st_dev, stat.st_ino


def _read_table(path: Path, image: str, label: str, split: str, group_by: str) -> _Found:
    columns, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _delimited(path)
    for key, column in (("data.image_column", image), ("data.label_column", label)):
        if column not in columns:
            raise RecipeError(
                f"{path} has no column {column!r}.{did_you_mean(column, columns)}",
                hint=f"It has {', '.join(columns)}. Name the right one with --set {key}=NAME.",
            )
    found = _Found()
    for number, row in enumerate(rows, 2):
        _add_row(found, path, number, row, (image, label, split, group_by))
    outside = [row.file for row in found.rows if _is_outside(path.parent, row.file)]
    if outside:
        found.notes.append(f"{len(outside)} images lie outside of the table's folder, e.g. {outside[0]}")
    return found


def _is_outside(root: Path, file: str) -> bool:
    """Tell whether a table names a file that is not below its folder; links are not looked into."""
    if not Path(file).is_absolute() and ".." not in file:
        return False
    top = os.path.normpath(root.absolute())
    return not Path(os.path.normpath(Path(top, file))).is_relative_to(top)


def _add_row(found: _Found, path: Path, number: int, row: dict[str, Any], names: tuple[str, ...]) -> None:
    file, label, split, group = (_text(row.get(name)) for name in names)
    if not file or not label:
        found.problems.append(Problem(file or f"{path.name} line {number}", "no image or no label in its row"))
    elif split and split.lower() not in SPLIT_NAMES:
        raise DataError(
            f"{path} line {number}: split {split!r} is none of {', '.join(SPLIT_NAMES)}",
            hint="An empty split is allowed: such images are divided by --val and --test.",
        )
    elif not _holds((path.parent / file).is_file):
        found.problems.append(Problem(file, "no such file"))
    elif file in found.files:
        found.problems.append(Problem(file, f"listed again in line {number}; the first time counts"))
    else:
        found.files.add(file)
        found.rows.append(_Row(file, label, SPLIT_NAMES.get(split.lower()), group or None))


def _text(cell: Any) -> str:
    """Yield a cell as text; None and NaN are empty, 0 is not."""
    return "" if cell is None or cell != cell else str(cell).strip()


def _delimited(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return list(reader.fieldnames or []), [_unguarded(row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _unguarded(row: dict[str, Any]) -> dict[str, Any]:
    """Yield a row as it was named, where it is one that `check --groups` has guarded against spreadsheets."""
    column, mark = MARK
    if row.get(column) != mark:
        return row
    return {key: unguarded(cell) if isinstance(cell, str) else cell for key, cell in row.items()}


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow", hint="pip install pyarrow, or save it as CSV."
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return table.column_names, table.to_pylist()


def _group_by_pattern(found: _Found, pattern: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"data.group_by = {pattern!r} is no column of the data and no regular expression: {error}"
        ) from error
    for row in found.rows:
        match = compiled.search(row.file)
        if match:
            row.group = match.group(1) if compiled.groups else match.group(0)
    without = sum(1 for row in found.rows if row.group is None)
    if without == len(found.rows):
        raise RecipeError(
            f"data.group_by = {pattern!r} matches no image",
            hint=f"Paths look like {found.rows[0].file!r}." if found.rows else "",
        )
    if without:
        found.notes.append(f"{without} images are in no group of {pattern!r} and stand alone")


def _manifest(root: Path, path: Path, found: _Found, needs_two_classes: bool, needs_train: bool) -> Manifest:
    if not found.rows:
        raise DataError(f"no images in {path}", hint=LAYOUTS)
    has_train = needs_train and any(row.split == "train" for row in found.rows)
    labels = sorted({row.label for row in found.rows if row.split in (None, "train") or not has_train})
    _check_classes(path, found.rows, labels)
    if needs_two_classes and len(labels) < 2:
        raise DataError(f"only one class in {path}: {labels[0]!r}", hint=f"A classifier needs two or more. {LAYOUTS}")
    index = {label: place for place, label in enumerate(labels)}
    samples = tuple(Sample(row.file, Target(index[row.label]), row.split, row.group) for row in found.rows)
    return Manifest(str(root.resolve()), tuple(labels), samples, tuple(found.problems), tuple(found.notes))


def _check_classes(path: Path, rows: list[_Row], labels: list[str]) -> None:
    for split in ("val", "test"):
        strange = sorted({row.label for row in rows if row.split == split} - set(labels))
        if strange:
            raise DataError(
                f"{split} has the class{'es' if len(strange) > 1 else ''} {', '.join(map(repr, strange))},"
                f" which train lacks.{did_you_mean(strange[0], labels)}",
                hint="Every class must have images in train; rename or remove the folder.",
            )
