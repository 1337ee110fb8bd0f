"""Doubts about labels that may not mean what they are taken for, and about files that may not be images of a class."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from finetune.data.listing import Row
from finetune.errors import DataError
from finetune.wording import listed

MANY = 20  # different numbers as labels: with more they look like measurements, not like classes
FEW = 5  # images per class on average: with fewer that is so
NONE = frozenset(re.findall(r"\S+", "nan null n/a na #n/a unlabeled unlabelled unsorted unclassified todo"))
SIGNS = ("|", ";", ",", "+", "&", "/")  # a space is in names: red car, red bus, blue car
BETWEEN = re.compile(r"\s*[,;|+&/]\s*|\s+")
MASK = re.compile(r"(.+?)[-_. ]*(?:masks?|seg|segmentation|gt|groundtruth)(?:[-_. ]*\d+)?", re.IGNORECASE)


def doubtful(path: Path, rows: list[Row], labels: list[str], *, is_to_train: bool) -> Iterator[str]:
    """Yield which labels may be one class, none or several, and where numbers look like measurements.

    Raises:
        DataError: such numbers leave nearly every class with one image, so that no classifier can be trained.
    """
    yield from alike_names(labels)
    yield from _none_or_several(labels)
    if not _are_measures(labels, len(rows)):
        return
    counts = Counter(row.label for row in rows)
    text = f"the {len(labels)} different labels look like measured numbers ({listed(labels, most=4)})"
    if is_to_train and sum(count == 1 for count in counts.values()) > len(labels) / 2:
        raise DataError(
            f"{path}: {text}, and most have one image",
            hint="--task regress estimates numbers; as classes, give ranges, e.g. '0-10'.",
        )
    yield (
        f"{text}: each is a class of its own, and their order is not used; --task regress estimates the number, and"
        " ranges as labels may serve better"
    )


def alike_names(labels: list[str]) -> Iterator[str]:
    """Yield which labels differ by so little that they may be one class."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        seen = (sign for sign in label.casefold() if unicodedata.category(sign) != "Cf")  # no joiners, no marks
        alike.setdefault("".join(re.findall(r"[^\s_-]+", "".join(seen))) or label, []).append(label)
    for names in alike.values():
        if len(names) > 1:
            shown = listed(map(repr, names))
            yield f"labels that differ only by case, spaces, unseen characters, - or _ are their own classes: {shown}"
    yield from _one_number(labels)


def are_surely_measures(rows: list[Row]) -> bool:
    """Return whether labels are numbers that look like measurements, and most have one image, or many are fractions."""
    counts = Counter(row.label for row in rows)
    if not _are_measures(list(counts), len(rows)):
        return False
    has_fractions = not all(float(label).is_integer() for label in counts)
    return sum(count == 1 for count in counts.values()) > len(counts) / 2 or (has_fractions and len(counts) > MANY)


def _one_number(labels: list[str]) -> Iterator[str]:
    numbers: dict[float, list[str]] = {}
    for label in labels:
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", label):
            numbers.setdefault(float(label), []).append(label)
    for names in numbers.values():
        if len(names) > 1:
            yield f"labels that are one number are classes of their own: {listed(map(repr, names))}"


def _none_or_several(labels: list[str]) -> Iterator[str]:
    """Yield which labels seem to say that there is no class, and which name several."""
    none = [label for label in labels if label.casefold() in NONE]
    if none:
        are = "is taken as a class" if len(none) == 1 else "are taken as classes"
        yield f"{listed(map(repr, none))} {are}: if that means that no class is known, remove these images"
    known = set(labels)
    several = [label for label in labels if len(parts := BETWEEN.split(label)) > 1 and known.issuperset(parts)]
    sign = None if several else _sign_between(labels)
    if sign:
        joined = [label for label in labels if sign in label]
        named = "" if sign == SIGNS[0] else f" --set data.label_separator='{sign}'"
        yield (
            f"{listed(map(repr, joined))} may name several classes with {sign!r} between them, and are classes of their"
            f" own: --task multilabel{named} gives an image several"
        )
    if several:
        is_one = len(several) == 1
        yield (
            f"{listed(map(repr, several))} {'names' if is_one else 'name'} several classes and"
            f" {'is a class' if is_one else 'are classes'} of {'its' if is_one else 'their'} own:"
            " --task multilabel gives an image several"
        )


def _sign_between(labels: list[str]) -> str | None:
    """Return the separator of classes in two labels or more: every part of these labels is also in another one."""
    for sign in SIGNS:
        parts = [{part.strip() for part in label.split(sign)} for label in labels]
        times = Counter(part for of_one in parts for part in of_one)
        joined = [of_one for of_one in parts if len(of_one) > 1]
        if len(joined) > 1 and all(times[part] > 1 for of_one in joined for part in of_one):
            return sign
    return None


def masks(rows: list[Row]) -> Iterator[str]:
    """Yield how many images are named like masks of others beside them."""
    named = [(PurePath(row.file), match[1]) for row in rows if (match := MASK.fullmatch(_stem(row.file)))]
    if not named:
        return
    known = {(file.parent, file.stem) for file in (PurePath(row.file) for row in rows)}
    files = [file for file, base in named if (file.parent, base) in known]
    if files:
        are = "image is" if len(files) == 1 else "images are"
        yield (
            f"{len(files):,} {are} named like masks of others beside them, and read as images, e.g. {files[0]}:"
            " remove such files if they are not images of the class"
        )


def _stem(file: str) -> str:
    """Return a file's name without its folders and its ending."""
    name = file.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _are_measures(labels: list[str], num_images: int) -> bool:
    """Return whether labels are numbers that look like measurements: fractions, or many with few images each."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    if any(re.match(r"0\d", label) for label in labels):
        return False  # what is filled up with zeros is a name
    is_whole = all(number.is_integer() for number in numbers)
    return len(labels) > 2 and (not is_whole or (len(labels) > MANY and num_images < FEW * len(labels)))
