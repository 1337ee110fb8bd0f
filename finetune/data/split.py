"""Train, val and test: stratified, seeded, and without a leak.

Copies of one image and images of one group stay on one side. A split that the user made is
obeyed, and what leaks in it is reported.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.csv_cells import guarded_cell, unguarded_cell
from finetune.errors import CheckpointError, DataError
from finetune.randomness import derive
from finetune.types import SPLITS, Manifest, Sample, Split, Target
from finetune.whole import whole_file

DIGEST = re.compile("(?:[0-9a-f]{2})*")
COLUMNS = ("file", "label", "split", "group", "digest")
Unit = list[Sample]


def assign(manifest: Manifest, *, val: float, test: float, seed: int) -> Manifest:
    """Return the manifest with a split for every sample.

    Where the user set val (or test) aside, that stands; what is missing is taken from train.

    Raises:
        DataError: a class has too few images to stand in train and in val.
    """
    has = {split: any(s.split == split for s in manifest.samples) for split in SPLITS}
    shares = {"test": 0.0 if has["test"] else test, "val": 0.0 if has["val"] else val}
    splits: dict[str, Split] = {s.file: s.split for s in manifest.samples if s.split in ("val", "test")}
    pool = _units([s for s in manifest.samples if s.file not in splits])
    if not pool:
        there = " and ".join(split for split in SPLITS if has[split])
        raise DataError(f"this data has {there}, but no train", hint="Add a train split, or take the splits away.")
    if sum(shares.values()) >= 1:
        raise DataError(f"split.val + split.test = {sum(shares.values()):g} leaves nothing to train on")
    for split in ("test", "val"):
        if shares[split]:
            share = shares[split] / (1 - (shares["test"] if split == "val" else 0))
            keep = 2 if split == "test" and shares["val"] else 1  # val and train come first
            taken = _take(pool, share=share, keep=keep, seed=seed)
            splits.update({s.file: split for unit in taken for s in unit})
            pool = [unit for unit in pool if unit[0].file not in splits]
    samples = tuple(replace(s, split=splits.get(s.file, "train")) for s in manifest.samples)
    done = replace(manifest, samples=samples)
    _check(done, SPLITS if shares["test"] else ("train", "val"))
    return replace(done, notes=manifest.notes + tuple(leaks(done)))


def leaks(manifest: Manifest) -> Iterator[str]:
    """Say which images and groups straddle splits."""
    for what, key in (("images", "digest"), ("groups", "group")):
        sides: dict[str, set[str]] = {}
        for sample in manifest.samples:
            value = getattr(sample, key)
            if value:
                sides.setdefault(value, set()).add(sample.split or "")
        astray = [value for value, found in sides.items() if len(found) > 1]
        if astray:
            example = next(s.file for s in manifest.samples if getattr(s, key) == astray[0])
            yield f"leak: {len(astray)} {what} stand in more than one split, e.g. {example}; `finetune check` lists all"


def write(manifest: Manifest, path: Path) -> None:
    """Write split.csv: file, label, split, group and content hash of every sample; whole or not at all.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    with whole_file(path) as beside:
        _write(manifest, beside)


def _write(manifest: Manifest, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for s in manifest.samples:
            names = (s.file, manifest.classes[s.target.index], s.split or "", s.group or "", s.digest)
            writer.writerow(map(guarded_cell, names))


def read(path: Path, *, root: str, classes: Sequence[str]) -> Manifest:
    """Return the manifest that `write` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    index: dict[str, int] = {name: place for place, name in enumerate(classes)}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            samples = tuple(_sample(row, index) for row in csv.DictReader(stream))
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read as a split: {error!r}") from error
    if not samples:
        raise CheckpointError(f"{path} cannot be read as a split: it lists no image")
    return Manifest(root, tuple(classes), samples)


def _sample(row: Mapping[str, str | None], index: Mapping[str, int]) -> Sample:
    cells = [row[column] for column in COLUMNS]
    file, label, word, group, digest = (unguarded_cell(cell) for cell in cells if cell is not None)
    split = next((name for name in SPLITS if name == word), None)
    if not file or split is None or not is_digest(digest):
        raise KeyError(word)
    return Sample(file, Target(index[label]), split, group or None, digest)


def val_in_train(manifest: Manifest) -> Manifest:
    """Return a manifest whose val images belong to train; test stays as it is."""
    return replace(
        manifest, samples=tuple(replace(s, split="train") if s.split == "val" else s for s in manifest.samples)
    )


def is_digest(text: str) -> bool:
    """Tell whether a text is a content hash in digits of base 16, or none."""
    return DIGEST.fullmatch(text) is not None


def units_of(samples: Sequence[Sample]) -> list[int]:
    """Return the number of each sample's unit: samples joined by a content hash or a group; by first sight."""
    number = {s.file: place for place, unit in enumerate(_units(samples)) for s in unit}
    return [number[sample.file] for sample in samples]


def first_of_units(units: Sequence[int]) -> list[int]:
    """Return the place of the first of each unit, in the order of the units' numbers."""
    places = {unit: place for place, unit in reversed(list(enumerate(units)))}
    return [places[unit] for unit in sorted(places)]


def _units(samples: Sequence[Sample]) -> list[Unit]:
    """Join samples that share a content hash or a group, whether directly or through others."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for sample in samples:
        for tie in (f"digest {sample.digest}" * bool(sample.digest), f"group {sample.group}" * bool(sample.group)):
            if tie:
                parent[find(tie)] = find(f"file {sample.file}")
    units: dict[str, Unit] = {}
    for sample in samples:
        units.setdefault(find(f"file {sample.file}"), []).append(sample)
    return [sorted(unit, key=lambda s: s.file) for unit in units.values()]


def _take(units: Sequence[Unit], *, share: float, keep: int, seed: int) -> list[Unit]:
    """Take units so that every class gives its share and keeps so many units; large ones first, drawn by the seed.

    A class that would give nothing, because its share is small or its groups are large, gives its smallest.
    """
    drawn = sorted(units, key=lambda unit: (-len(unit), derive(seed, "split", unit[0].file)))
    inside = [Counter(s.target.index for s in unit) for unit in drawn]
    images = Counter(s.target.index for unit in drawn for s in unit)
    wanted = Counter({label: round(count * share) for label, count in images.items()})
    left = Counter(label for found in inside for label in found)
    missing, taken = set(left), []

    def is_spared(place: int) -> bool:
        return all(left[label] > keep for label in inside[place])

    def take(place: int) -> None:
        taken.append(drawn[place])
        wanted.subtract(inside[place])
        left.subtract(inside[place].keys())
        missing.difference_update(inside[place])

    for place, unit in enumerate(drawn):
        gain = sum(min(count, max(wanted[label], 0)) for label, count in inside[place].items())
        if 2 * gain > len(unit) and is_spared(place):
            take(place)
    for place in reversed(range(len(drawn))):
        if not missing.isdisjoint(inside[place]) and is_spared(place):
            take(place)
    return taken


def _check(manifest: Manifest, splits: Sequence[Split]) -> None:
    for split in splits:
        if not manifest.split(split):
            raise DataError(
                f"no image is left for {split}",
                hint="Groups may be too large to divide: see split.val and data.group_by.",
            )
    train = manifest.counts("train")
    gone = [name for name, count in train.items() if not count]
    if gone:
        raise DataError(
            f"{', '.join(map(repr, gone))} would have no image in train",
            hint="Each class needs images in at least two groups, or a split of your own.",
        )
