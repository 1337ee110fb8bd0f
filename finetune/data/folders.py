"""A folder of images as rows: class folders, with splits above or below them, or with none.

    found = read_folder(Path("imgs"))

A folder's name says its split; where names do not say, but the folders look like splits, they are refused,
unless the user says that they are classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from finetune.data.decode import is_image_name
from finetune.data.listing import (
    PLAIN,
    Found,
    Row,
    count_unread,
    counted,
    folded,
    holds,
    kinds_of,
    listed,
    normal,
    split_of,
    split_within,
)
from finetune.errors import DataError
from finetune.types import Problem, Split

IGNORED = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
RUN_FILES = ("recipe.toml", "plan.json")  # a folder that holds both is one of our run folders
NUMBER = re.compile(r"\d{1,4}|(?<=[\W_])[a-z]$", re.IGNORECASE)
NUMBERED = re.compile(r"[^\W\d]*[\W_]*(\d{1,4}|(?<=[\W_])[a-z])|\d{1,4}[\W_]*[^\W\d]+", re.IGNORECASE)
DATED = re.compile(r"\d{2,4}([\W_]?\d{2,4})*")
PORTIONS = frozenset(
    {"fold", "split", "part", "partition", "set", "subset", "batch", "chunk", "shard", "half", "cv", "k"}
)
KINDS = frozenset({"class", "cls", "category", "label", "kind", "type", "species", "grade"})
VIEWS = frozenset(
    re.findall(
        r"\w+",
        "front back left right side top bottom raw original processed augmented day night grey gray rgb color colour",
    )
)
WAY_OUT = (
    "Name the folders train, val and test, give one of them as the data,"
    " or list the images in a CSV with the columns image, label and split."
    " Where the folders on top are the classes: --set data.layout=classes."
)


def read_folder(root: Path, *, is_classes: bool = False) -> Found:
    """Return the images of a folder with their classes, and their splits where it has them.

    With `is_classes` the folders on top are classes, whatever their names and what they hold.

    Raises:
        DataError: it cannot be read, or its folders may be splits or classes and do not say which.
    """
    found = Found()
    prefix = "" if is_classes else _into(root)
    here = root / prefix
    if prefix:
        _note_beside(found, root, "")
        found.notes.append(f"the classes are taken from {prefix}")
    folders = _child_folders(here)
    splits = {} if is_classes else _splits(here, folders)
    if splits:
        _add_splits(found, root, prefix, folders, splits)
        return found
    _note_beside(found, root, prefix)
    if not is_classes and _is_split_below(here, folders):
        for name in folders:
            for part in _child_folders(here / name):
                _add_class(found, root, f"{prefix}{name}/{part}", name, split_of(part))
        return found
    if not is_classes:
        _refuse_unnamed_splits(found, here, folders)
    for name in folders:
        _add_class(found, root, f"{prefix}{name}", name, None)
    return found


def is_ignored(path: Path) -> bool:
    """Return whether a file or folder is hidden, of the system, or one of our run folders."""
    return _is_hidden(path.name) or all(holds((path / name).is_file) for name in RUN_FILES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def walk(
    folder: Path, on_error: Callable[[OSError], None], on_other: Callable[[list[str]], None] | None = None
) -> Iterator[str]:
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
        folders[:] = sorted(name for name in folders if not is_ignored(Path(place, name)))
        inside = Path(os.path.relpath(place, folder)).as_posix()
        shown = sorted(name for name in files if not _is_hidden(name))
        images = [name for name in shown if is_image_name(name)]
        if on_other and len(images) < len(shown):
            on_other([name for name in shown if not is_image_name(name)])
        yield from images if inside == "." else (f"{inside}/{name}" for name in images)


def _into(root: Path, inside: str = "") -> str:
    """Return the way down through folders that hold nothing but one folder, to where classes or splits are."""
    folders = [name for name in _child_folders(root / inside) if _has_images(root / inside / name)]
    if len(folders) != 1 or _images_of(root / inside):
        return inside
    below = root / inside / folders[0]
    deeper = _class_folders(below)
    if split_of(folders[0]) or _images_of(below) or not deeper or (len(deeper) > 1 and _are_no_classes(deeper)):
        return inside
    further = _into(root, f"{inside}{folders[0]}/")
    return further if len(_class_folders(root / further)) > 1 else inside


def _splits(here: Path, folders: list[str]) -> dict[str, Split]:
    """Return the folders that are splits; none, where the folders are classes.

    Raises:
        DataError: two folders say the same split, or one says a split and what stands beside it has no classes.
    """
    used = [name for name in folders if _has_images(here / name)] or folders
    whole = {name: split for name in used if (split := split_of(name))}
    parts = {name: split for name in used if (split := split_within(name))}
    said = parts if len(whole) < len(parts) and _share_classes(here, list(parts)) else whole
    kinds = set(said.values())
    is_all = bool(said) and len(said) == len(used) and (said is whole or "train" in kinds)
    is_some = "train" in kinds and len(said) > 1 and _share_classes(here, list(said))
    if not (is_all or is_some):
        _refuse_split_beside_images(here, used, list(whole))
        return {}
    for kind in kinds:
        names = [name for name, split in said.items() if split == kind]
        if len(names) > 1:
            raise DataError(
                f"{len(names)} folders of {here} say that they are {kind}: {listed(names)}",
                hint=f"Leave one of them, or put their images together. {WAY_OUT}",
            )
    return said


def _refuse_split_beside_images(here: Path, used: list[str], said: list[str]) -> None:
    """Refuse a folder that says a split and holds class folders, where its neighbours hold images alone."""
    splits = [name for name in said if not _images_of(here / name) and len(_class_folders(here / name)) > 1]
    others = [name for name in used if name not in said]
    if splits and others and not any(_class_folders(here / name) for name in others):
        raise DataError(
            f"{listed(splits)} of {here} says that it is a split and holds class folders,"
            f" and beside it {listed(others)} holds images of no class",
            hint=f"Give {here / splits[0]} as the data, or take the others away. {WAY_OUT}",
        )


def _share_classes(here: Path, folders: list[str]) -> bool:
    """Return whether any folder has a class folder of the first that says train (else of the first)."""
    first = next((name for name in folders if split_within(name) == "train"), folders[0])
    below = {name: _folded(_class_folders(here / _inner(here, f"{name}/"))) for name in folders}
    return any(below[first] & below[one] for one in folders if one != first)


def _folded(names: Iterable[str]) -> set[str]:
    return set(map(folded, names))


def _is_split_below(here: Path, folders: list[str]) -> bool:
    """Return whether every class folder holds split folders.

    Raises:
        DataError: some do, but other images would belong to no split; or what is divided are whole data sets.
    """
    used = [name for name in folders if _has_images(here / name)]
    below = {name: _class_folders(here / name) for name in used}
    said = {name: [part for part in parts if split_of(part)] for name, parts in below.items()}
    loose = {name for name in used if _images_of(here / name)}
    is_divided = any(
        len({split_of(part) for part in said[name]}) > 1 or (said[name] == below[name] != [] and name not in loose)
        for name in used
    )
    if not is_divided and 2 * sum(map(bool, said.values())) <= len(used):
        return False
    divided = [f"{name}/{part}" for name in used for part in said[name]]
    inside = [_folded(_class_folders(here / part)) for part in divided if not _images_of(here / part)]
    shared = sorted(set.intersection(*inside)) if len(inside) == len(divided) > 1 else []
    if len(shared) > 1 and not _are_no_classes(shared):
        raise DataError(
            f"{here} holds data sets side by side, each with splits and classes of its own: {listed(used)}",
            hint=f"Give one of them as the data: {here / used[0]}. {WAY_OUT}",
        )
    odd = [name for name in used if name in loose or said[name] != below[name]]
    twice = [name for name in used if len({split_of(part) for part in said[name]}) < len(said[name])]
    if odd or twice:
        fault = f"images of {listed(odd)} are in none" if odd else f"{listed(twice)} holds one split twice"
        raise DataError(
            f"split folders lie below classes of {here} ({listed(divided, most=4)}), but {fault}",
            hint=f"Give each class the same split folders, or put the splits above the classes. {WAY_OUT}",
        )
    return True


def _refuse_unnamed_splits(found: Found, here: Path, folders: list[str]) -> None:
    """Refuse folders that look like splits without saying which; note those that may be.

    Splits hold nearly the same class folders and no images of their own. So may classes (dates, views, patients by
    number): such names below are taken for what they are, unless the folders are called portions (`fold1`).
    """
    used = [name for name in folders if _has_images(here / name)]
    kinds = {split_within(name) for name in used}
    if len(kinds) > 1 and None not in kinds and "train" in kinds:
        raise DataError(f"the names of the folders of {here} say splits and classes: {listed(used)}", hint=WAY_OUT)
    if len(used) < 2 or any(_images_of(here / name) for name in used):
        return
    below = [{normal(part) for part in _class_folders(here / name)} for name in used]
    shared = sorted(set.intersection(*below))
    if len(shared) < 2 or 2 * len(shared) < len(set.union(*below)):
        return
    if any(map(split_within, used)) or all(_stem(name) in PORTIONS for name in used) or not _are_no_classes(shared):
        raise DataError(
            f"the folders of {here} hold the same folders ({listed(shared)}), as splits do,"
            f" but their names do not say which is train, val or test: {listed(used)}",
            hint=WAY_OUT,
        )
    found.notes.append(
        f"{listed(used)} are taken as the classes; each holds the folders {listed(shared)}:"
        " where those are the classes, put them on top"
    )


def _stem(name: str) -> str | None:
    """Return what a numbered name has besides its number, in lower case: `fold` of `Fold_1`; else None."""
    match = NUMBERED.fullmatch(name)
    return None if match is None else NUMBER.sub("", name).strip(" _-.").lower()


def _are_no_classes(names: list[str]) -> bool:
    """Return whether folder names are dates, numbers of one length, views, or a word with numbers, but for `class1`."""
    if all(name.lower() in VIEWS for name in names):
        return True
    if all(DATED.fullmatch(name) for name in names):
        return len(set(map(len, names))) == 1
    stems = set(map(_stem, names))
    return len(stems) == 1 and stems.isdisjoint({None, "", *KINDS})


def _add_splits(found: Found, root: Path, prefix: str, folders: list[str], splits: dict[str, Split]) -> None:
    _note_beside(found, root, prefix)
    others = [name for name in folders if name not in splits]
    if others:
        counts = (
            f"{name} ({counted(len(list(walk(root / prefix / name, lambda _: None))), 'image')})" for name in others
        )
        found.notes.append(f"left out, beside the splits: {listed(counts)}")
    for name, split in splits.items():
        inside = _inner(root, f"{prefix}{name}/")
        _note_beside(found, root, inside)
        for label in _child_folders(root / inside):
            _add_class(found, root, f"{inside}{label}", label, split)


def _inner(root: Path, inside: str) -> str:
    """Return a split folder, or the one folder in it that says the split again, or `images`."""
    folders = _class_folders(root / inside)
    if len(folders) == 1 and not _images_of(root / inside) and _class_folders(root / inside / folders[0]):
        above = Path(inside).name
        if folders[0].lower() in PLAIN or normal(folders[0]).lower() == normal(above).lower() or split_of(folders[0]):
            return f"{inside}{folders[0]}/"
    return inside


def _note_beside(found: Found, root: Path, prefix: str) -> None:
    """Note the images and other files that lie in no class folder."""
    beside = [entry.name for entry in os.scandir(root / prefix) if holds(entry.is_file)]
    beside = [name for name in beside if not _is_hidden(name)]
    loose = sum(map(is_image_name, beside))
    count_unread(found, (name for name in beside if not is_image_name(name)))
    if loose:
        found.num_loose += loose
        belong = "belongs" if loose == 1 else "belong"
        place = prefix or "the folder itself"
        found.notes.append(f"{counted(loose, 'image')} in {place} {belong} to no class: left out")


def _add_class(found: Found, root: Path, folder: str, label: str, split: Split | None) -> None:
    unread: list[OSError] = []
    beside = Found()
    names = list(walk(root / folder, unread.append, lambda others: count_unread(beside, others)))
    found.unread += beside.unread
    found.problems += [
        Problem(os.path.relpath(error.filename, root), f"a folder that cannot be read: {error.strerror}")
        for error in unread
    ]
    if not names and not unread:
        kinds = f" that can be read, but {kinds_of(beside.unread)}: it is no class" if beside.unread else ""
        found.notes.append(f"no images in {folder}{kinds}")
    found.rows += [Row(f"{folder}/{name}", label, split) for name in names]


def _child_folders(folder: Path) -> list[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return [entry.name for entry in entries if holds(entry.is_dir) and not is_ignored(folder / entry.name)]


def _class_folders(folder: Path) -> list[str]:
    """Return the folders in a folder that hold images; none, where it cannot be read."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return []
    return [name for name in _child_folders(folder) if _has_images(folder / name)]


def _has_images(folder: Path) -> bool:
    """Return whether images are below a folder, or may be: it cannot be read."""
    unread: list[OSError] = []
    return _images_of(folder) or next(walk(folder, unread.append), None) is not None or bool(unread)


def _images_of(folder: Path) -> bool:
    """Return whether images lie in a folder itself; no, where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return any(is_image_name(e.name) and not is_ignored(Path(e)) and holds(e.is_file) for e in entries)
    except OSError:
        return False


def _identity(place: Path) -> tuple[int, int]:
    stat = place.stat()
    return stat.st_dev, stat.st_ino
