"""The user's data: a folder of class folders, with or without splits, a table of images, or shards.

    manifest = read("imgs")

Reads names only; images are opened by `checks`, splits are made by `split`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from finetune.data.asked_images import missing_path
from finetune.data.folders import read_folder
from finetune.data.labels import alike_names, doubtful, masks
from finetune.data.listing import LAYOUTS, TABLES, Listing, Row, holds, normal, unread_note
from finetune.data.places import shards_named
from finetune.data.shards import EXPECTED, Columns, read_shards
from finetune.data.tables import read_table
from finetune.data.targets import target_of
from finetune.data.tasking import settle_task
from finetune.data.tree import table_beside
from finetune.errors import DataError, RecipeError, did_you_mean
from finetune.images.shards import SUFFIX
from finetune.tasks import BETWEEN_LABELS, Task
from finetune.types import Manifest, OnEvent, Sample, ignore
from finetune.values import TaskName
from finetune.wording import counted, listed

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
NUMBER = "number"  # what the numbers that folders are named by are called


def read(
    path: str | Path,
    *,
    image_column: str = "image",
    label_column: str = "label",
    split_column: str = "split",
    group_by: str = "none",
    layout: str = "auto",
    task: TaskName = "classify",
    separator: str = "auto",
    needs_two_classes: bool = True,
    needs_train: bool = True,
    needs_splits: bool = True,
    needs_groups: bool = True,
    on_event: OnEvent = ignore,
) -> Manifest:
    """Return the manifest of a folder, a table or shards (wds:), with the splits it has.

    Class names come from train (or from everything, where there is no split, and without `needs_train`),
    sorted by name. With the layout "classes", folders on top are classes even where they look like splits.
    The task "auto" is told from the labels of a table; `separator` stands between the classes of one image.
    Without `needs_splits` a column of splits that would not be obeyed is a note, and without `needs_groups` groups
    that no image is in.

    Raises:
        DataError: nothing there, no images, fewer than two classes, or a class that train lacks.
        RecipeError: a column that the table lacks, or a regular expression that is none.
    """
    if shards_named(path) is not None:
        columns = Columns(label_column, split_column, group_by)
        root, listing = read_shards(str(path), columns=columns, needs_split=needs_splits, on_event=on_event)
        path = Path(path)
    elif (path := check_there(path)).is_dir():
        root, listing = str(path.resolve()), read_folder(path, is_classes=layout == "classes")
    elif path.suffix.lower() in TABLES and path.is_file():
        root = str(path.parent.resolve())
        listing = read_table(path, image_column, label_column, split_column, group_by, needs_split=needs_splits)
    elif path.suffix.lower() in ARCHIVES:
        raise DataError(
            f"{path} is an archive, not a folder of images", hint=f"Unpack it, and name the folder. {LAYOUTS}"
        )
    else:
        raise DataError(f"{path} is a file, not a folder of images", hint=LAYOUTS)
    if group_by != "none" and listing.rows and not any(row.group for row in listing.rows):
        _group_by_pattern(listing, group_by, is_needed=needs_groups)
    settled = settle_task(path, listing, task, separator, is_table=not path.is_dir())
    manifest = _manifest(root, path, listing, needs_two_classes and settled != "regress", needs_train, settled)
    if settled == "regress":
        return replace(manifest, classes=(NUMBER if path.is_dir() else label_column,))
    return replace(manifest, is_tree=path.is_dir() and settled == "multilabel")


def check_there(path: str | Path) -> Path:
    """Return the path of a folder or table, its ~ resolved; shards are looked for only when they are read.

    Raises:
        DataError: nothing is there.
    """
    if shards_named(path) is not None:
        return Path(path)
    whole = Path(path).expanduser()
    if not holds(whole.exists):
        raise missing_path(str(path), whole, expected=LAYOUTS)
    return whole


def _group_by_pattern(listing: Listing, pattern: str, *, is_needed: bool) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"data.group_by = {pattern!r} is neither a column of the data nor a regular expression: {error}"
        ) from error
    for row in listing.rows:
        match = compiled.search(row.file)
        if match:
            row.group = match.group(1) if compiled.groups else match.group(0)
    without = sum(1 for row in listing.rows if row.group is None)
    if without == len(listing.rows) and not is_needed:
        listing.notes.append(f"no image is in a group by {pattern!r}: all but copies count as independent")
        return
    if without == len(listing.rows):
        raise RecipeError(
            f"data.group_by = {pattern!r} matches no image",
            hint=f"Paths look like {listing.rows[0].file!r}.",
        )
    if without:
        are = counted(without, "image is", "images are")
        listing.notes.append(f"{are} in no group of {pattern!r}: {'it stands' if without == 1 else 'they stand'} alone")


def _manifest(
    root: str, path: Path, listing: Listing, needs_two_classes: bool, needs_train: bool, task: Task
) -> Manifest:
    if not listing.rows:
        raise _without_rows(path, listing)
    if listing.unread:
        listing.notes.append(unread_note(listing.unread))
    listing.notes += _one_form(listing.rows)
    has_train = needs_train and any(row.split == "train" for row in listing.rows)
    chosen = {row.label for row in listing.rows if row.split in (None, "train") or not has_train}
    names = _class_names(task)
    labels = sorted({name for label in chosen for name in names(label)})
    if task != "regress":
        _check_classes(path, listing.rows, labels, names)
    if needs_two_classes and len(labels) < 2:
        raise _one_class(path, listing, labels[0] if labels else "")
    listing.notes += [*_doubts(task, path, listing.rows, labels, is_to_train=needs_two_classes), *masks(listing.rows)]
    index = {label: place for place, label in enumerate(labels)}
    samples = tuple(Sample(row.file, target_of(task, row.label, index), row.split, row.group) for row in listing.rows)
    problems, notes = tuple(listing.problems), tuple(listing.notes)
    return Manifest(root, tuple(labels), samples, problems, notes, task=task)


def _class_names(task: Task) -> Callable[[str], list[str]]:
    """Return a function that returns the classes named by a label."""
    if task == "multilabel":
        return lambda label: label.split(BETWEEN_LABELS) if label else []
    return lambda label: [label]


def _doubts(task: Task, path: Path, rows: list[Row], labels: list[str], *, is_to_train: bool) -> Iterator[str]:
    if task == "classify":
        yield from doubtful(path, rows, labels, is_to_train=is_to_train)
    elif task == "multilabel":
        yield from alike_names(labels)


def _without_rows(path: Path, listing: Listing) -> DataError:
    """Return the error for data without any image of a class: what is there instead, and the layout or table needed."""
    if listing.num_loose:
        images = counted(listing.num_loose, "image")
        text = f"{path} holds {images}, but no class folders: which class each belongs to is not known"
        return DataError(text, hint=f"{table_beside(path)}{LAYOUTS}")
    if set(listing.unread) == {SUFFIX}:
        shards = counted(listing.unread.total(), "tar shard")
        return DataError(f"no images in {path}, but {shards}", hint=f"Name shards with a leading wds:, as wds:{path}.")
    if listing.unread:
        return DataError(f"no images in {path} that can be read: {unread_note(listing.unread)}", hint=LAYOUTS)
    if shards_named(path) is not None:
        first = listing.problems[0] if listing.problems else None
        reason = f"; the first problem: {first.file}: {first.reason}" if first else ""
        return DataError(f"no images with a class in {path}{reason}", hint=EXPECTED)
    if not path.is_dir():
        rows = counted(len(listing.problems), "row")
        return DataError(f"no images in {path}: of its {rows} none has both an image and a label", hint=LAYOUTS)
    return DataError(f"no images in {path}", hint=f"{table_beside(path)}{LAYOUTS}")


def _one_class(path: Path, listing: Listing, label: str) -> DataError:
    """Return the error for data of one class; a folder of images alone is no class."""
    count = counted(len(listing.rows), "image")
    beside = counted(listing.num_loose, "image beside its folder has", "images beside its folder have")
    loose = f"; {beside} no class" if listing.num_loose else ""
    unread = f"; {unread_note(listing.unread)}" if listing.unread else ""
    first = next((f"; {problem.file}: {problem.reason}" for problem in listing.problems), "")
    return DataError(
        f"only one class in {path}: {label!r} ({count}){loose}{unread}{first}",
        hint=f"A classifier needs two or more. {table_beside(path)}{LAYOUTS}",
    )


def _one_form(rows: list[Row]) -> Iterator[str]:
    """Bring labels into one Unicode form, and yield which were written in two forms."""
    forms: dict[str, set[str]] = {}
    for row in rows:
        forms.setdefault(normal(row.label), set()).add(row.label)
        row.label = normal(row.label)
    twice = [label for label, spellings in forms.items() if len(spellings) > 1]
    if twice:
        yield f"labels written in two Unicode forms are one class: {listed(twice)}"


def _check_classes(path: Path, rows: list[Row], labels: list[str], names: Callable[[str], list[str]]) -> None:
    for split in ("val", "test"):
        there = {row.label for row in rows if row.split == split}
        strange = sorted({name for label in there for name in names(label)} - set(labels))
        if strange:
            raise DataError(
                f"{split} has the class{'es' if len(strange) > 1 else ''} {', '.join(map(repr, strange))},"
                f" which train lacks.{did_you_mean(strange[0], labels)}",
                hint="Every class must have images in train: give it some, rename it, or remove it.",
            )
