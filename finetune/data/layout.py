"""Which folders are splits and which are classes, by their names and by what they hold.

A folder's name says its split; folders that look like splits under other names are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from finetune.data.listing import PLAIN, Listing, folded, normal, split_of, split_within
from finetune.data.tree import child_folders, class_folders, has_images, has_own_images, table_beside, walk
from finetune.errors import DataError
from finetune.types import Split
from finetune.wording import counted, listed

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
    " If the top folders are the classes: --set data.layout=classes."
)


def into(root: Path, inside: str = "") -> str:
    """Return the path down through folders that hold only one folder, to where classes or splits are."""
    folders = [name for name in child_folders(root / inside) if has_images(root / inside / name)]
    if len(folders) != 1 or has_own_images(root / inside):
        return inside
    below = root / inside / folders[0]
    deeper = class_folders(below)
    if split_of(folders[0]) or has_own_images(below) or not deeper or (len(deeper) > 1 and _are_no_classes(deeper)):
        return inside
    further = into(root, f"{inside}{folders[0]}/")
    return further if len(class_folders(root / further)) > 1 else inside


def splits_of(here: Path, folders: list[str]) -> dict[str, Split]:
    """Return the folders that are splits; none if the folders are classes.

    Raises:
        DataError: two folders say the same split, or one says a split and what stands beside it has no classes.
    """
    used = [name for name in folders if has_images(here / name)] or folders
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
                f"{len(names)} folders of {here} have names of {kind}: {listed(names)}",
                hint=f"Keep one of them, or merge them. {WAY_OUT}",
            )
    return said


def _refuse_split_beside_images(here: Path, used: list[str], said: list[str]) -> None:
    """Refuse a folder that is named like a split and holds class folders while its neighbours hold only images."""
    splits = [name for name in said if not has_own_images(here / name) and len(class_folders(here / name)) > 1]
    others = [name for name in used if name not in said]
    if splits and others and not any(class_folders(here / name) for name in others):
        raise DataError(
            f"{listed(splits)} of {here} has the name of a split and holds class folders,"
            f" but {listed(others)} beside it {'holds' if len(others) == 1 else 'hold'} images without a class",
            hint=f"Give {here / splits[0]} as the data, or remove the others. {WAY_OUT}",
        )


def _share_classes(here: Path, folders: list[str]) -> bool:
    """Return whether any folder shares a class folder with the train folder (or, without one, the first)."""
    first = next((name for name in folders if split_within(name) == "train"), folders[0])
    below = {name: _folded(class_folders(here / inner(here, f"{name}/"))) for name in folders}
    return any(below[first] & below[name] for name in folders if name != first)


def _folded(names: Iterable[str]) -> set[str]:
    return set(map(folded, names))


def inner(root: Path, inside: str) -> str:
    """Return a split folder, or its only folder if that repeats the split's name or is `images`."""
    folders = class_folders(root / inside)
    if len(folders) == 1 and not has_own_images(root / inside) and class_folders(root / inside / folders[0]):
        above = Path(inside).name
        if folders[0].lower() in PLAIN or normal(folders[0]).lower() == normal(above).lower() or split_of(folders[0]):
            return f"{inside}{folders[0]}/"
    return inside


def splits_below(here: Path, folders: list[str]) -> dict[str, dict[str, Split]]:
    """Return the split folders of every class folder, relative to `here`; none, where they lie below no class.

    Between a class and its splits may be folders that hold nothing but one folder: `cat/images/train`.

    Raises:
        DataError: only some do, so that other images would belong to no split; or whole data sets are divided.
    """
    used = [name for name in folders if has_images(here / name)]
    tops = {name: _down(here, name) for name in used}
    below = {name: class_folders(here / top) for name, top in tops.items()}
    said = {name: _said_below(name, parts) for name, parts in below.items()}
    loose = {name for name in used if has_own_images(here / tops[name])}
    is_divided = any(
        len(set(said[name].values())) > 1 or (list(said[name]) == below[name] != [] and name not in loose)
        for name in used
    )
    if not is_divided and 2 * sum(map(bool, said.values())) <= len(used):
        return {}
    divided = [f"{tops[name]}/{part}" for name in used for part in said[name]]
    _refuse_data_sets(here, [name for name in used if said[name]], divided)
    odd = [name for name in used if name in loose or list(said[name]) != below[name]]
    twice = [name for name in used if len(set(said[name].values())) < len(said[name])]
    if odd or twice:
        fault = f"images of {listed(odd)} are in none" if odd else f"{listed(twice)} has one split twice"
        raise DataError(
            f"split folders lie below classes of {here} ({listed(divided, most=4)}), but {fault}",
            hint=f"Give each class the same split folders, or put the splits above the classes. {WAY_OUT}",
        )
    return {name: {f"{tops[name]}/{part}": split for part, split in said[name].items()} for name in used}


def _down(here: Path, inside: str) -> str:
    """Return the path down through folders that hold only one folder, to where splits of a class may be."""
    folders = [] if has_own_images(here / inside) else class_folders(here / inside)
    return _down(here, f"{inside}/{folders[0]}") if len(folders) == 1 and not split_within(folders[0]) else inside


def _said_below(label: str, folders: list[str]) -> dict[str, Split]:
    """Return the folders of a class that name a split: by their whole name, besides the class's, or all in part."""
    said = {name: split for name in folders if (split := split_of(name) or split_of(name, besides=label))}
    parts = {name: split for name in folders if (split := split_within(name))}
    kinds = set(parts.values())
    is_told = len(parts) == len(folders) and "train" in kinds and len(kinds) > 1
    return parts if is_told else said


def _refuse_data_sets(here: Path, sets: list[str], divided: list[str]) -> None:
    inside = [_folded(class_folders(here / part)) for part in divided if not has_own_images(here / part)]
    shared = sorted(set.intersection(*inside)) if len(inside) == len(divided) > 1 else []
    if len(shared) > 1 and not _are_no_classes(shared):
        what = "data sets side by side, each" if len(sets) > 1 else "a data set beside other images,"
        raise DataError(
            f"{here} holds {what} with splits and classes of its own: {listed(sets)}",
            hint=f"Give {'one of them' if len(sets) > 1 else 'it'} as the data: {here / sets[0]}. {WAY_OUT}",
        )


def refuse_nested(listing: Listing, here: Path) -> None:
    """Refuse a split folder that holds splits itself, or has `images` for a class; note other oddities."""
    labels = class_folders(here)
    said = {name: split for name in labels if (split := split_of(name))}
    shared = [name for name in said if _folded(class_folders(here / name)) & _folded(set(labels) - {name})]
    if shared or (len(said) == len(labels) and len(set(said.values())) > 1):
        raise DataError(
            f"{here} is a split and holds splits itself: {listed(shared or said)}",
            hint=f"Give {here} as the data, or remove the inner ones. {WAY_OUT}",
        )
    same = _same_folders(here, labels)
    if not same or any(map(split_of, same)) or _are_no_classes(same):
        return
    if are_portions(labels) or any(label.lower() in PLAIN for label in labels):
        raise DataError(
            f"the folders of {here} hold the same folders ({listed(same)}), so the classes may be these"
            f" or {listed(labels)}",
            hint="Put the class folders directly into the splits, and anything else outside them,"
            " or list the images in a CSV with the columns image, label and split.",
        )
    _note_same(listing, labels, same)


def flat_splits(here: Path, insides: Mapping[str, Split]) -> list[str]:
    """Return the split folders that hold images but no class folders, which only val and test may.

    Raises:
        DataError: none has class folders, or train has not.
    """
    flat = [inside for inside, split in insides.items() if _is_flat(here / inside, split)]
    if len(flat) == len(insides):
        raise _without_classes(here, flat)
    if any(insides[inside] == "train" for inside in flat):
        raise _without_classes(here, flat)
    return flat


def _is_flat(folder: Path, split: Split) -> bool:
    """Return whether a split folder has no class folders, not counting `images` or the split's name again."""
    labels = class_folders(folder)
    if not labels:
        return has_own_images(folder)
    return len(labels) == 1 and (labels[0].lower() in PLAIN or split_of(labels[0]) == split)


def _without_classes(here: Path, insides: list[str]) -> DataError:
    count = sum(sum(1 for _ in walk(here / inside, lambda _: None)) for inside in insides)
    names = sorted(map(str, map(Path, insides)), key=lambda name: split_of(Path(name).name) != "train")
    are, have = ("is a split", "has") if len(names) == 1 else ("are splits", "have")
    return DataError(
        f"{listed(names)} of {here} {are} but {have} no class folders:"
        f" the classes of the {counted(count, 'image')} are unknown",
        hint=f"{table_beside(here)}Put the images of each class into a folder of its own, {names[0]}/<class>, or list"
        " them in a CSV with the columns image, label and split."
        " If those are the classes: --set data.layout=classes.",
    )


def unheeded(names: Iterable[str], split: Split | None) -> tuple[list[str], list[str]]:
    """Return the folders among images of a class that say several splits or another one, and those that may be splits.

    `names` are relative to the class. A single folder that names a split may be anything: a train is a vehicle.
    """
    inside: dict[str, dict[str, Split | None]] = {}
    for folder in {name.rpartition("/")[0] for name in names} - {""}:
        above = ""
        for part in folder.split("/"):
            inside.setdefault(above, {})[f"{above}{part}"] = split_of(part)
            above += f"{part}/"
    wrong, unsure = [], []
    for said in inside.values():
        told = sorted(name for name in said if said[name])
        kinds = {said[name] for name in told}
        is_other = split is not None and len(told) == len(said) and kinds.isdisjoint({split, "train"})
        if told and (len(kinds) > 1 or is_other):
            wrong += told
        elif kinds != {split}:
            unsure += told
        if are_portions(said):
            unsure += sorted(said)
    return wrong, unsure


def refuse_unnamed(listing: Listing, here: Path, folders: list[str]) -> None:
    """Refuse folders that look like splits without naming one; note those that may be.

    Splits hold nearly the same class folders and no images of their own. So may classes (dates, views, patients by
    number): such names below are taken for what they are, unless the folders are called portions (`fold1`).
    """
    used = [name for name in folders if has_images(here / name)]
    kinds = {split_within(name) for name in used}
    if len(kinds) > 1 and None not in kinds and "train" in kinds:
        raise DataError(f"the folders of {here} are named after splits and classes: {listed(used)}", hint=WAY_OUT)
    shared = _same_folders(here, used)
    if not shared:
        return
    if any(map(split_within, used)) or are_portions(used) or not _are_no_classes(shared):
        raise DataError(
            f"the folders of {here} hold the same folders ({listed(shared)}), as splits do,"
            f" but their names do not say which is train, val or test: {listed(used)}",
            hint=WAY_OUT,
        )
    if not are_portions(shared):
        _note_same(listing, used, shared)


def _note_same(listing: Listing, classes: list[str], shared: list[str]) -> None:
    note = (
        f"{listed(classes)} are taken as the classes; each holds the folders {listed(shared)}:"
        " if those are the classes, put them on top"
    )
    if note not in listing.notes:
        listing.notes.append(note)


def _same_folders(here: Path, folders: list[str]) -> list[str]:
    """Return the folders that every one of these holds, where they hold hardly others and no images of their own."""
    if len(folders) < 2 or any(has_own_images(here / name) for name in folders):
        return []
    below = [{normal(part) for part in class_folders(here / name)} for name in folders]
    shared = sorted(set.intersection(*below))
    return [] if len(shared) < 2 or 2 * len(shared) < len(set.union(*below)) else shared


def are_portions(names: Collection[str]) -> bool:
    """Return whether there are several names and all are of numbered portions: `fold1`, `part_b`."""
    return len(names) > 1 and all(_stem(Path(name).name) in PORTIONS for name in names)


def _stem(name: str) -> str | None:
    """Return what a numbered name has besides its number, in lower case: `fold` of `Fold_1`; else None."""
    match = NUMBERED.fullmatch(name)
    return None if match is None else NUMBER.sub("", name).strip(" _-.").lower()


def _are_no_classes(names: list[str]) -> bool:
    """Return whether folder names are dates, numbers of one length, views, or a numbered word other than `class`."""
    if all(name.lower() in VIEWS for name in names):
        return True
    if all(DATED.fullmatch(name) for name in names):
        return len(set(map(len, names))) == 1
    stems = set(map(_stem, names))
    return len(stems) == 1 and stems.isdisjoint({None, "", *KINDS})
