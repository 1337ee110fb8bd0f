"""Train, val and test: stratified, seeded, and without a leak.

Copies of an image and images of a group stay in one split. A split that the user made is obeyed, and leaks in it are
reported.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.csv_cells import guarded_cell, unguarded_cell
from finetune.data.clashes import leaks
from finetune.data.label_split import LabelPool
from finetune.data.targets import strata_of, target_of
from finetune.data.ties import Places, Ties
from finetune.errors import CheckpointError, DataError
from finetune.randomness import derive_each
from finetune.settings import SplitSection
from finetune.tasks import AnyTarget, Labels, Task
from finetune.types import SPLITS, Manifest, Sample, Split
from finetune.whole import whole_file

DIGEST = re.compile("(?:[0-9a-f]{2})*")
COLUMNS = ("file", "label", "split", "group", "digest")
FAR = 1.5  # a share that is off by more than this factor is reported


def assign_as(manifest: Manifest, section: SplitSection) -> Manifest:
    """Return the manifest with a split for every sample, as a recipe says: `assign`."""
    folds = None if section.folds == "none" else section.folds
    return assign(manifest, val=section.val, test=section.test, seed=section.seed, folds=folds, fold=section.fold)


def assign(
    manifest: Manifest, *, val: float, test: float, seed: int, folds: int | None = None, fold: int = 1
) -> Manifest:
    """Return the manifest with a split for every sample.

    Splits that the user made stand; what is missing of val and test is taken from train. With `folds` val is one
    of that many parts of everything but test, the user's val included.

    Raises:
        DataError: a class has too few images to stand in train and in val.
    """
    has = {s.split for s in manifest.samples}
    shares = {"test": 0.0 if "test" in has else test, "val": 0.0 if "val" in has or folds else val}
    own: dict[str, Split] = {s.file: s.split for s in manifest.samples if s.split in ("val", "test")}
    places = [place for place, s in enumerate(manifest.samples) if s.file not in own]
    if not places:
        there = " and ".join(split for split in SPLITS if split in has)
        raise DataError(f"this data has {there}, but no train", hint="Add a train split, or remove the splits.")
    if sum(shares.values()) >= 1:
        raise DataError(f"split.val + split.test = {sum(shares.values()):g} leaves nothing to train on")
    pool = _pool_of([manifest.samples[place] for place in places], seed=seed)
    splits: list[Split] = [own.get(s.file, "train") for s in manifest.samples]
    for split in ("test", "val"):
        if shares[split]:
            share = shares[split] / (1 - (shares["test"] if split == "val" else 0))
            keep = (folds or 2) if split == "test" and (folds or shares["val"]) else 1  # val and train come first
            for taken in pool.take(share=share, keep=keep).tolist():
                splits[places[taken]] = split
    samples = tuple(
        s
        if s.split == split
        else Sample(s.file, s.target, split, s.group, s.digest)  # `replace` takes ten times as long
        for s, split in zip(manifest.samples, splits, strict=True)
    )
    done = replace(manifest, samples=samples)
    if folds:
        done = in_folds(done, folds=folds, seed=seed)[fold - 1]
        if "val" in has:
            done = replace(done, notes=(*done.notes, "split.folds: the data's own val is divided together with train"))
    _check(done, SPLITS if shares["test"] else ("train", "val"))
    return replace(done, notes=(*done.notes, *_far_from(shares, [splits[place] for place in places]), *leaks(done)))


def _far_from(shares: dict[str, float], drawn: Sequence[Split]) -> Iterator[str]:
    """Yield which splits got a share of the images far from the one asked for."""
    for split, share in shares.items():
        found = drawn.count(split) / len(drawn)
        if share and not share / FAR <= found <= share * FAR:
            yield (
                f"{split} has {found:.0%} of the images, but {share:.0%} was asked for: each class that can has an"
                " image there, and copies and groups are not divided"
            )


def in_folds(manifest: Manifest, *, folds: int, seed: int) -> tuple[Manifest, ...]:
    """Return one manifest per fold: everything but test is divided into parts, and each in turn is val, the rest train.

    Every image is in val once; units are not divided, and each class is spread as evenly as they allow.

    Raises:
        DataError: a class has too few units for that many parts.
    """
    places = [place for place, s in enumerate(manifest.samples) if s.split != "test"]
    pool = _pool_of([manifest.samples[place] for place in places], seed=seed)
    fold = np.full(len(manifest.samples), -1)
    fold[places] = folds - 1
    for number in range(folds - 1):
        left = folds - number
        for taken in pool.take(share=1 / left, keep=left - 1).tolist():
            fold[places[taken]] = number
    parts = tuple(_with_val(manifest, fold == number) for number in range(folds))
    for part in parts:
        _check_fold(part, folds)
    return parts


def _with_val(manifest: Manifest, is_val: NDArray[np.bool_]) -> Manifest:
    samples = tuple(
        s if s.split == "test" else Sample(s.file, s.target, "val" if held else "train", s.group, s.digest)
        for s, held in zip(manifest.samples, is_val.tolist(), strict=True)
    )
    return replace(manifest, samples=samples)


def _check_fold(part: Manifest, folds: int) -> None:
    try:
        _check(part, ("train", "val"))
    except DataError as error:
        hint = f"{folds} parts need {folds} images, or groups, of each class: take fewer folds."
        raise DataError(f"{error.message}, divided into {folds} folds", hint=hint) from None


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
            names = (s.file, manifest.label(s.target), s.split or "", s.group or "", s.digest)
            writer.writerow(map(guarded_cell, names))


def read(path: Path, *, root: str, classes: Sequence[str], task: Task = "classify") -> Manifest:
    """Return the manifest that `write` wrote, of images with these classes under a task.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    index: dict[str, int] = {name: place for place, name in enumerate(classes)}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            samples = tuple(_sample(row, partial(target_of, task, index=index)) for row in csv.DictReader(stream))
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} cannot be read as a split: {error!r}") from error
    if not samples:
        raise CheckpointError(f"{path} cannot be read as a split: it lists no image")
    return Manifest(root, tuple(classes), samples, task=task)


def trained_contents(path: Path, *, is_refit: bool) -> set[str]:
    """Return the content hashes of the images that a run with this split.csv trained on; none if it cannot be read."""
    trained = ("train", "val") if is_refit else ("train",)
    with suppress(OSError, KeyError, ValueError, csv.Error), path.open(encoding="utf-8", errors="replace") as stream:
        return {row["digest"] for row in csv.DictReader(stream) if row["split"] in trained} - {"", None}
    return set()


def _sample(row: Mapping[str, str | None], target: Callable[[str], AnyTarget]) -> Sample:
    cells = [row[column] for column in COLUMNS]
    file, label, word, group, digest = (unguarded_cell(cell) for cell in cells if cell is not None)
    split = next((name for name in SPLITS if name == word), None)
    if not file or split is None or not is_digest(digest):
        raise KeyError(word)
    return Sample(file, target(label), split, group or None, digest)


def val_in_train(manifest: Manifest) -> Manifest:
    """Return a manifest whose val images belong to train; test stays as it is."""
    return replace(
        manifest, samples=tuple(replace(s, split="train") if s.split == "val" else s for s in manifest.samples)
    )


def is_digest(text: str) -> bool:
    """Return whether a text is a hexadecimal content hash, or empty."""
    return DIGEST.fullmatch(text) is not None


def units_of(samples: Sequence[Sample]) -> list[int]:
    """Return the number of each sample's unit (samples joined by a content hash or a group), in order of appearance."""
    numbers: list[int] = _unit_numbers(samples).tolist()
    return numbers


def first_of_units(units: Sequence[int]) -> list[int]:
    """Return the index of the first sample of each unit, in the order of the units' numbers."""
    places = {unit: place for place, unit in reversed(list(enumerate(units)))}
    return [places[unit] for unit in sorted(places)]


def _unit_numbers(samples: Sequence[Sample]) -> Places:
    """Return the unit of each sample; a unit is what shares a content hash, group or name, even indirectly."""
    ties = Ties(len(samples))
    ties.join_alike([sample.digest for sample in samples])
    ties.join_alike([sample.group for sample in samples])
    ties.join_alike([sample.file for sample in samples])
    return ties.numbers()


def _pool_of(samples: Sequence[Sample], *, seed: int) -> _Pool | LabelPool:
    """Return the units of samples, large ones first, equal ones in an order drawn from the seed and names."""
    numbers = _unit_numbers(samples)
    sizes = np.bincount(numbers)
    names: list[str] = [""] * len(sizes)
    for sample, number in zip(samples, numbers.tolist(), strict=True):
        names[number] = min(names[number] or sample.file, sample.file)
    order = np.lexsort((derive_each(seed, "split", names), -sizes))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    sets = [sample.target for sample in samples if isinstance(sample.target, Labels)]
    if sets:
        return LabelPool.of([target.classes for target in sets], place[numbers], sets[0].num_classes)
    return _Pool(strata_of(samples), place[numbers], np.ones(len(sizes), dtype=bool))


@dataclass(slots=True)
class _Pool:
    """What can be taken for a split: units in the order in which they are drawn, large ones first.

    Letters: N samples, U units, T pairs of a unit and a class that it has images of.
    """

    labels: Places  # (N,): class indices
    unit: Places  # (N,): places in the order of drawing
    is_there: NDArray[np.bool_]  # (U,): is not taken yet

    def take(self, *, share: float, keep: int) -> Places:
        """Return the places of samples, taken in units so that every class gives its share and keeps `keep` units.

        A class that would give nothing, because its share is small or its groups are large, gives its smallest.
        """
        before = self.is_there.copy()
        _Taking(self, share=share, keep=keep).run()
        return np.flatnonzero((before & ~self.is_there)[self.unit])


class _Taking:
    """One taking of units from a pool: what every class is still to give, and how many units of it are left."""

    def __init__(self, pool: _Pool, *, share: float, keep: int) -> None:
        self.is_there, self.keep = pool.is_there, keep
        inside = pool.is_there[pool.unit]
        labels, unit = pool.labels[inside], pool.unit[inside]
        num_classes = int(labels.max(initial=0)) + 1
        pairs, self.counts = np.unique(unit * num_classes + labels, return_counts=True)  # (T,)
        self.units, self.labels = pairs // num_classes, pairs % num_classes
        self.sizes = np.bincount(unit, minlength=len(pool.is_there))  # (U,)
        self.wanted = [round(count * share) for count in np.bincount(labels, minlength=num_classes).tolist()]
        self.left = np.bincount(self.labels, minlength=num_classes).tolist()

    def run(self) -> None:
        """Take what every class is to give, then one unit of those classes that gave none."""
        missing = {label for label, count in enumerate(self.left) if count}
        is_single = self.sizes[self.units] == 1
        for unit, inside in self._inside(~is_single):
            gain = sum(min(count, max(self.wanted[label], 0)) for label, count in inside)
            if 2 * gain > self.sizes[unit] and self._is_spared(inside):
                self._take(unit, inside)
                missing.difference_update(label for label, _ in inside)
        missing.difference_update(self._take_singles(is_single))
        if missing:
            has_missing = np.isin(self.units, self.units[np.isin(self.labels, list(missing))])
            for unit, inside in reversed(list(self._inside(has_missing & self.is_there[self.units]))):
                if not missing.isdisjoint(label for label, _ in inside) and self._is_spared(inside):
                    self._take(unit, inside)
                    missing.difference_update(label for label, _ in inside)

    def _inside(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield units with the classes in them and how many images of each, from some of the pairs (T,)."""
        columns = (column[chosen].tolist() for column in (self.units, self.labels, self.counts))
        for unit, rows in groupby(zip(*columns, strict=True), key=itemgetter(0)):
            yield unit, [(label, count) for _, label, count in rows]

    def _is_spared(self, inside: list[tuple[int, int]]) -> bool:
        return all(self.left[label] > self.keep for label, _ in inside)

    def _take(self, unit: int, inside: list[tuple[int, int]]) -> None:
        self.is_there[unit] = False
        for label, count in inside:
            self.wanted[label] -= count
            self.left[label] -= 1

    def _take_singles(self, is_single: NDArray[np.bool_]) -> list[int]:
        """Take the first units of one image of every class, and return the classes: none depends on another."""
        units, labels = self.units[is_single], self.labels[is_single]
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], labels[order])
        nth = np.arange(len(order)) - starts  # of its class
        most = np.minimum(self.wanted, np.array(self.left) - self.keep)  # (K,)
        taken = order[nth < most[labels[order]]]
        self.is_there[units[taken]] = False
        for label, count in enumerate(np.bincount(labels[taken], minlength=len(most)).tolist()):
            self.wanted[label] -= count
            self.left[label] -= count
        classes: list[int] = np.unique(labels[taken]).tolist()
        return classes


def _check(manifest: Manifest, splits: Sequence[Split]) -> None:
    for split in splits:
        if not manifest.split(split):
            raise DataError(
                f"no image is left for {split}",
                hint=_why_none(manifest),
            )
    train = manifest.counts("train")
    gone = [name for name, count in train.items() if not count]
    if gone:
        raise DataError(
            f"{', '.join(map(repr, gone))} would have no image in train",
            hint="Each class needs images in at least two groups, or a split of your own.",
        )


def _why_none(manifest: Manifest) -> str:
    if any(sample.group for sample in manifest.samples):
        return "Groups may be too large to divide: see split.val and data.group_by."
    return (
        "A class keeps an image for train, and copies of an image stay in one split: add images, so that a class has"
        " two that differ or more."
    )
