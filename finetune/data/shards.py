"""Tar shards of images (WebDataset) as rows: those of `finetune shard`, and others that keep to the convention.

    root, listing = read_shards("wds:imgs/train-{000..009}.tar", label_column="label", ...)

Members of one key (their name up to the first dot) are one sample: an image, and beside it a .cls (the number of a
class, or its name) or a .json whose keys are read as the columns of a table are. A number is a class of `_info.json`
(`classes`) or of a line of classnames.txt, where there is one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from finetune import ranks
from finetune.data.label_columns import cell_text
from finetune.data.listing import SPLIT_NAMES, Listing, Row, normal, split_of, split_within
from finetune.data.places import WILD, braces_expanded, root_of, settled_path, shards_named
from finetune.errors import DataError
from finetune.images.shards import SUFFIX, Entry, Shard, keep_news, news_of, shard_of
from finetune.images.stores import is_there, matches, read_range
from finetune.tasks import BETWEEN_LABELS
from finetune.types import Event, OnEvent, Problem, Split, ignore

EXPECTED = "Expected tar shards: wds:FOLDER, wds:FOLDER/train-*.tar, wds:s3://BUCKET/train-{000..099}.tar."
UNREADABLE = "What was read is kept: try again later, or name the shards that can be read (wds:FOLDER/{a,b}.tar)."
INFO = ("_info.json", "info.json")  # as timm looks for them
NAMES = "classnames.txt"
LARGEST_INFO = 2**28  # bytes
NO_LABEL = "no class beside it: no .cls, and no label in a .json"
GROUP = "group"  # the key under which `finetune shard` keeps the group of an image


@dataclass(frozen=True, slots=True)
class Columns:
    """The keys of a .json beside an image that say what its class, split and group are."""

    label: str
    split: str
    group: str


@dataclass(frozen=True, slots=True)
class _Info:
    """The files beside shards: the names of the classes by number, how many images each shard has, and its split."""

    classes: tuple[str, ...] = ()
    shards: Mapping[str, int | None] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)
    is_ours: bool = False


def read_shards(
    path: str, *, columns: Columns, needs_split: bool = True, on_event: OnEvent = ignore
) -> tuple[str, Listing]:
    """Return the root of shards and what lies in them, in their order.

    Raises:
        DataError: there are none, one cannot be read, or a split or class is unknown.
    """
    path = settled_path(path)
    root, listing, others = root_of(path), Listing(no_label=NO_LABEL), Counter[str]()
    shards = named_shards(path)
    info = _info_beside(root)
    if info.is_ours and columns.group == "none":
        columns = replace(columns, group=GROUP)
    for shard, found in looked_through(shards, on_event=on_event):
        name = shard.removeprefix(f"{root}/")
        others += found.others
        split = _split_named(name, info)
        problems = _problems(found, info.shards.get(PurePosixPath(name).name))
        listing.problems += [
            Problem(f"{name}/{member}".rstrip("/"), reason, is_of_row=bool(member)) for member, reason in problems
        ]
        for entry in found.entries:
            _add(listing, f"{name}/{entry.name}", entry, split, columns, info, needs_split=needs_split)
    if root == (shards_named(path) or "").rstrip("/"):  # the whole folder is meant
        names = {PurePosixPath(shard).name for shard in shards}
        missing = sorted(info.shards.keys() - names)
        listing.problems += [Problem(name, f"is named by {INFO[0]}, but missing") for name in missing]
    listing.notes += _told(listing, others, info)
    return root, listing


def looked_through(shards: Sequence[str], *, on_event: OnEvent = ignore) -> Iterator[tuple[str, Shard]]:
    """Yield each of some shards, and what lies in it.

    Raises:
        DataError: one cannot be read.
    """
    for count, shard in enumerate(shards, 1):
        try:
            yield shard, shard_of(shard)
        except OSError as error:
            raise DataError(f"{shard}: cannot be read: {error.strerror or error}", hint=UNREADABLE) from error
        on_event(Event.progress("look through shards", count, len(shards)))


def look_through_together(path: str, *, on_event: OnEvent = ignore) -> None:
    """Look through new shards, divided among the processes of a run; all keep what is found.

    What cannot be read is left to whoever lists them.

    Raises:
        DataError: there are none.
    """
    shards = ranks.agreed(lambda: named_shards(settled_path(path)))
    for start in range(0, len(shards), ranks.count()):
        mine = shards[start:][ranks.rank() : ranks.rank() + 1]
        found = None
        with suppress(OSError):
            found = news_of(mine[0]) if mine else None
        for shard, news in zip(shards[start:], ranks.exchanged(found), strict=False):
            if news is not None:
                keep_news(shard, news)
        on_event(Event.progress("look through shards", min(start + ranks.count(), len(shards)), len(shards)))


def named_shards(path: str) -> list[str]:
    """Return the shards that a path names, sorted.

    Raises:
        DataError: there is none.
    """
    where = shards_named(path) or ""
    try:
        found = sorted({shard for pattern in braces_expanded(where) for shard in matches(pattern)})
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint=EXPECTED) from error
    wrong = next((shard for shard in found if not shard.endswith(SUFFIX)), None)
    if not found or (wrong == where and not is_there(where)):
        raise DataError(f"no shards there: {path}", hint=EXPECTED)
    if wrong is not None:
        raise DataError(f"{wrong} is no {SUFFIX} shard", hint=f"Unpack compressed ones. {EXPECTED}")
    return found


def _add(
    listing: Listing, file: str, entry: Entry, split: Split | None, columns: Columns, info: _Info, *, needs_split: bool
) -> None:
    try:
        beside = json.loads(entry.json) if entry.json else {}
    except ValueError:
        listing.problems.append(Problem(file, "its .json is damaged", is_of_row=True))
        return
    beside = beside if isinstance(beside, dict) else {}
    word = cell_text(beside.get(columns.split))
    if word and not split_of(word) and needs_split:
        raise DataError(f"{file}: split {word!r} is not one of {', '.join(SPLIT_NAMES)}")
    group = normal(cell_text(beside.get(columns.group))) or None
    try:
        label = _label(listing, beside.get(columns.label), entry.cls.strip(), info)
    except LookupError:
        reason = f"its class is {entry.cls.strip()}, but only {len(info.classes)} are named"
        listing.problems.append(Problem(file, reason, is_of_row=True))
        return
    row = Row(file, label, (split_of(word) if word else None) or split, group)
    if label:
        listing.rows.append(row)
    else:
        listing.unlabelled[file] = row


def _label(listing: Listing, cell: Any, cls: str, info: _Info) -> str:
    """Return the label of an image, by its .json, else by its .cls.

    Raises:
        LookupError: there is no class of that number.
    """
    if isinstance(cell, list):
        listing.is_joined = True
        return BETWEEN_LABELS.join(map(cell_text, cell))
    label = cell_text(cell) or cls
    if info.classes and label == cls and cls.isdecimal():
        return info.classes[int(cls)]
    return label


def _split_named(name: str, info: _Info) -> Split | None:
    """Return the split of a shard: from `_info.json`, else from its name or a folder's."""
    path = PurePosixPath(name)
    if path.name in info.splits:
        return info.splits[path.name]
    said = (split_within(word) for word in (path.stem, *reversed(path.parts[:-1])))
    return next((split for split in said if split is not None), None)


def _info_beside(root: str) -> _Info:
    """Return what the files beside shards say.

    Raises:
        DataError: one is there and cannot be read.
    """
    classes: tuple[str, ...] = ()
    shards: dict[str, int | None] = {}
    splits: dict[str, Split] = {}
    is_ours = False
    for name in INFO:
        content = _content(f"{root}/{name}")
        if content:
            try:
                info = json.loads(content)
                classes = tuple(map(str, info.get("classes", ())))
                is_ours = "format_version" in info
                parts = {word: part["filenames"] for word, part in info.get("splits", {}).items()}
                shards = dict(pair for part in info.get("splits", {}).values() for pair in _lengths(part))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise DataError(f"{root}/{name} cannot be read as facts about shards: {error!r}") from error
            splits = {file: split for word, files in parts.items() for file in files if (split := split_of(word))}
            break
    names = _content(f"{root}/{NAMES}").decode("utf-8", "replace").splitlines()
    return _Info(classes or tuple(name.strip() for name in names if name.strip()), shards, splits, is_ours)


def _lengths(part: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yield the shards of a split by `_info.json`, and how many images each has where that stands there."""
    files, counts = part["filenames"], part.get("shard_lengths") or ()
    for number, file in enumerate(files):
        name, count = PurePosixPath(str(file)).name, counts[number] if len(counts) == len(files) else None
        if name.endswith(SUFFIX) and not set(WILD) & set(name):
            yield name, count if isinstance(count, int) else None


def _problems(found: Shard, wanted: int | None) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the members of a shard, then with itself, and how many of its images are missing."""
    own = [reason for member, reason in found.problems if not member]
    if wanted is not None and len(found.entries) < wanted:
        own.append(f"{wanted - len(found.entries):,} of its {wanted:,} images are missing, according to {INFO[0]}")
    yield from ((member, reason) for member, reason in found.problems if member)
    if own:
        yield "", "; ".join(own)


def _content(place: str) -> bytes:
    """Return the content of a file beside shards; nothing if there is none.

    Raises:
        DataError: that cannot be told.
    """
    try:
        return read_range(place, 0, LARGEST_INFO)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}", hint=EXPECTED) from error


def _told(listing: Listing, others: Counter[str], info: _Info) -> Iterator[str]:
    if others:
        kinds = ", ".join(f"{count:,} .{kind}" for kind, count in others.most_common(5))
        yield f"not read beside the images: {kinds}"
    if not info.classes and listing.rows and all(row.label.isdecimal() for row in listing.rows):
        yield f"classes are called by their numbers: neither {INFO[0]} nor {NAMES} beside the shards names them"
