"""A folder of images as rows: class folders, with splits above or below them, or with none.

    listing = read_folder(Path("imgs"))

What is a split is said by `layout`; what is left out is counted here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from finetune.data.layout import (
    WAY_OUT,
    are_portions,
    flat_splits,
    inner,
    into,
    refuse_nested,
    refuse_unnamed,
    splits_below,
    splits_of,
    unheeded,
)
from finetune.data.listing import Listing, Row, count_unread, holds, kinds_of, split_of
from finetune.data.tree import child_folders, has_images, is_hidden, walk
from finetune.errors import DataError
from finetune.images.names import is_image_name
from finetune.types import Problem, Split
from finetune.wording import counted, listed

FOLDER = r"([^/]+)/[^/]+$"  # the folder that an image lies in, as a pattern of groups
FLAT = {  # what is said of images in a split folder without class folders; train may not be one
    "val": "left out, and val is taken from train",
    "test": "left out, so nothing is measured on them",
}


class Part(NamedTuple):
    """A folder whose images, however deep, are of one class and one split."""

    folder: str
    label: str
    split: Split | None = None


def read_folder(root: Path, *, is_classes: bool = False) -> Listing:
    """Return the images of a folder with their classes, and their splits where it has them.

    With `is_classes` the folders on top are classes, whatever their names and what they hold.

    Raises:
        DataError: it cannot be read, or its folders may be splits or classes and do not say which.
    """
    listing = Listing()
    if is_classes:
        _note_beside(listing, root, "")
        for name in child_folders(root):
            _add_class(listing, root, Part(name, name))
        return listing
    inside = {part: _add_class(listing, root, part) for part in list(_parts(listing, root))}
    _heed_deeper(listing, root, inside)
    listing.notes += _of_folders(inside)
    listing.notes += _doubtful([part.label for part, names in inside.items() if names])
    return listing


def _parts(listing: Listing, root: Path) -> Iterator[Part]:
    """Yield the folders of every class and split, and note what lies beside them."""
    prefix = into(root)
    here = root / prefix
    if prefix:
        _note_beside(listing, root, "")
        listing.notes.append(f"the classes are taken from {prefix}")
    folders = child_folders(here)
    splits = splits_of(here, folders)
    _note_beside(listing, root, prefix)
    if splits:
        yield from _of_splits(listing, root, prefix, folders, splits)
        return
    below = splits_below(here, folders)
    if not below:
        refuse_unnamed(listing, here, folders)
    for name in folders:
        if name in below:
            yield from _of_class(listing, root, prefix, name, below[name])
        else:
            yield Part(f"{prefix}{name}", name)


def _of_splits(
    listing: Listing, root: Path, prefix: str, folders: list[str], splits: Mapping[str, Split]
) -> Iterator[Part]:
    """Yield the class folders of every split, and note what is left out."""
    _note_others(listing, root / prefix, [name for name in folders if name not in splits])
    insides = {inner(root, f"{prefix}{name}/"): split for name, split in splits.items()}
    flat = flat_splits(root, insides)
    for inside, split in insides.items():
        if inside in flat:
            _note_loose(listing, inside, sum(1 for _ in walk(root / inside, lambda _: None)), FLAT[split])
            continue
        _note_beside(listing, root, inside)
        refuse_nested(listing, root / inside)
        yield from (Part(f"{inside}{label}", label, split) for label in child_folders(root / inside))


def _of_class(listing: Listing, root: Path, prefix: str, name: str, splits: Mapping[str, Split]) -> Iterator[Part]:
    """Yield the split folders of a class, and those beside them that hold no image."""
    top = str(PurePath(next(iter(splits))).parent)
    for place in (top, *map(str, PurePath(top).parents[:-1])):
        _note_beside(listing, root, f"{prefix}{place}/")
    for child in child_folders(root / prefix / top):
        yield Part(f"{prefix}{top}/{child}", name, splits.get(f"{top}/{child}"))


def _note_others(listing: Listing, here: Path, others: list[str]) -> None:
    """Note the folders beside splits, and splits in which no image lies."""
    empty = [name for name in others if split_of(name) and not has_images(here / name)]
    others = [name for name in others if name not in empty]
    if empty:
        listing.notes.append(f"no images in {listed(empty)}: left out")
    if others:
        counts = (f"{name} ({counted(len(list(walk(here / name, lambda _: None))), 'image')})" for name in others)
        listing.notes.append(f"left out, beside the splits: {listed(counts)}")


def _heed_deeper(listing: Listing, root: Path, inside: Mapping[Part, list[str]]) -> None:
    """Note folders below the classes that may be splits.

    Raises:
        DataError: some say several splits, or another one than they lie in.
    """
    unsure = []
    for part, names in inside.items():
        wrong, others = unheeded(names, part.split)
        if wrong:
            said = listed((f"{part.folder}/{name}" for name in wrong), most=4)
            raise DataError(
                f"split folders in {root} lie too deep to be used: {said}, in the class {part.label!r}"
                + f" of {part.split}" * bool(part.split),
                hint=f"Put them above the classes, or directly below every class. {WAY_OUT}",
            )
        unsure += [f"{part.folder}/{name}" for name in others]
    if unsure:
        listing.notes.append(
            f"{listed(unsure, most=4)}: read with the other images of the class; where they are splits,"
            " name them train, val and test, above the classes or directly below every class"
        )


def _of_folders(inside: Mapping[Part, list[str]]) -> Iterator[str]:
    """Yield that every class consists of folders that no other has, which may be classes themselves, or groups."""
    below: dict[str, set[str]] = {}
    for part, names in inside.items():
        below.setdefault(part.label, set()).update(name.partition("/")[0] if "/" in name else "" for name in names)
    below = {label: names for label, names in below.items() if names}
    every = [name for names in below.values() for name in names]
    if len(below) > 1 and all(len(names) > 1 for names in below.values()) and len(set(every) - {""}) == len(every):
        shown = listed(f"{label}/{min(names)}" for label, names in below.items())
        yield (
            f"every class consists of folders, e.g. {shown}: where those are the classes, put them on top; where each"
            f" holds what belongs together, as of one patient, --group-by {shlex.quote(FOLDER)} keeps it in one split"
        )


def _doubtful(labels: list[str]) -> Iterator[str]:
    """Yield which classes have the name of a split, or of a portion of one."""
    labels = list(dict.fromkeys(labels))
    named = [label for label in labels if split_of(label) in ("val", "test")]
    if are_portions(labels):
        yield f"{listed(labels)} are taken as the classes; if they are parts of a class, put class folders on top"
    if named:
        others = listed(label for label in labels if label not in named)
        yield f"the folders {listed(named)} are taken as classes, like {others}: if one is a split, remove it"


def _note_beside(listing: Listing, root: Path, prefix: str) -> None:
    """Note the images and other files that lie in no class folder."""
    beside = [entry.name for entry in os.scandir(root / prefix) if holds(entry.is_file)]
    beside = [name for name in beside if not is_hidden(name)]
    loose = sum(map(is_image_name, beside))
    count_unread(listing, (name for name in beside if not is_image_name(name)))
    if loose:
        _note_loose(listing, prefix or "the folder itself", loose, "left out")


def _note_loose(listing: Listing, place: str, count: int, said: str) -> None:
    listing.num_loose += count
    belong = "belongs" if count == 1 else "belong"
    listing.notes.append(f"{counted(count, 'image')} in {place} {belong} to no class: {said}")


def _add_class(listing: Listing, root: Path, part: Part) -> list[str]:
    """Add the images of one class and split, and return them, relative to their folder."""
    unread: list[OSError] = []
    beside = Listing()
    names = list(walk(root / part.folder, unread.append, lambda others: count_unread(beside, others)))
    listing.unread += beside.unread
    listing.problems += [
        Problem(os.path.relpath(error.filename, root), f"a folder that cannot be read: {error.strerror}")
        for error in unread
    ]
    if not names and not unread:
        kinds = f" that can be read, but {kinds_of(beside.unread)}: it is not a class" if beside.unread else ""
        listing.notes.append(f"no images in {part.folder}{kinds}")
    listing.rows += [Row(f"{part.folder}/{name}", part.label, part.split) for name in names]
    return names
