"""What can be found wrong with a data set without a network: each finding with its images and what to do about it.

A finding *spoils* a result when what is measured on val or test would mislead: images in several splits,
images in two classes, a class that is not measured, missing files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.balance import IMBALANCE
from finetune.data.near_duplicates import Copies
from finetune.data.summary import give_aways
from finetune.data.targets import TENTHS, strata_of
from finetune.images.thumbnails import Looks
from finetune.tasks import TASKS, AnyTarget, Quantity, Task
from finetune.types import SPLITS, Manifest
from finetune.wording import counted

MOST_DAMAGED = 0.01  # share of all files; `run` leaves them out by name, and up to this many change little
UNUSED = {  # whether what is left out is a row: its kind, what it is called, and the way out
    False: ("damaged", "file", "Get them again, or remove them."),
    True: (
        "rows",
        "row",
        "Correct or remove them: each must name one existing file, with a label, once; in shards"
        " each image needs one class beside it.",
    ),
}
BLANK = 2.0  # deviation of the grey values of an image, in levels, below which there is nothing to see
HOW = {"bytes": "same bytes", "pixels": "same pixels", "near": "near copy"}
ALIKE_NUMBERS = 0.1  # deviations of all numbers by which those of near copies may differ
CONFLICT: dict[Task, tuple[str, str]] = {  # how copies of one image contradict each other, and what to do
    "classify": (
        "in more than one class",
        "Keep each in its right class, and remove it from the others; if an image may have both, --task multilabel.",
    ),
    "multilabel": ("with different sets of classes", "Give all copies of an image the same classes."),
    "regress": ("with different numbers", "Give all copies of an image the same number."),
}
GROUPED = (
    "Keep copies on one side: `finetune check DATA --groups FILE.csv`, then"
    " `finetune run --data FILE.csv --group-by group`."
)


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as a finding names it; what was left out has no label."""

    file: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One example of a finding: the images involved, and a note on them."""

    files: tuple[Seen, ...]
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: its kind, whether it spoils a result, one sentence, advice, and every case of it."""

    kind: str
    spoils: bool
    text: str
    advice: str
    cases: tuple[Case, ...] = ()


def picture_findings(listed: Manifest, manifest: Manifest, looks: Looks, copies: Sequence[Copies]) -> list[Finding]:
    """Return what is wrong with the images of a manifest, starting with what spoils a result.

    `manifest` has its final splits (or none, if none could be made), `listed` those that the user made; looks and
    copies refer to samples by their index in both.
    """
    copies = sorted(copies, key=lambda cluster: list(HOW).index(cluster.how))  # the surest first
    findings = [
        *_leaks(listed, manifest, copies),
        *_conflicts(manifest, copies),
        *_groups_astray(manifest),
        *_unmeasured(manifest),
        *_unused(manifest),
        *_harmless_copies(manifest, copies),
        *_blank(manifest, looks),
        *_imbalance(manifest),
        *_give_aways(manifest, looks),
    ]
    return sorted(findings, key=lambda finding: not finding.spoils)


def seen(manifest: Manifest, place: int) -> Seen:
    """Return an image of a manifest as findings name it."""
    sample = manifest.samples[place]
    return Seen(sample.file, manifest.label(sample.target), sample.split)


def _case(manifest: Manifest, copies: Copies, *, apart: str = "label") -> Case:
    """Return copies as a case; the files that come first differ in their label (or split)."""
    files = [seen(manifest, place) for place in copies.members]
    first = {getattr(file, apart): file for file in reversed(files)}
    ordered = sorted(files, key=lambda file: first[getattr(file, apart)] is not file)
    return Case(tuple(ordered), HOW[copies.how], {"how": copies.how})


def _splits(manifest: Manifest, copies: Copies) -> set[str | None]:
    return {manifest.samples[place].split for place in copies.members}


def _labels(manifest: Manifest, copies: Copies) -> set[AnyTarget]:
    return {manifest.samples[place].target for place in copies.members}


def _are_torn(manifest: Manifest, copies: Copies) -> bool:
    """Return whether copies contradict each other; numbers of near ones may differ by a tenth of a deviation."""
    targets = _labels(manifest, copies)
    numbers = [target.value for target in targets if isinstance(target, Quantity)]
    if copies.how != "near" or not numbers:
        return len(targets) > 1
    every = [sample.target.value for sample in manifest.samples if isinstance(sample.target, Quantity)]
    return max(numbers) - min(numbers) > ALIKE_NUMBERS * float(np.std(every))


def _leaks(listed: Manifest, manifest: Manifest, copies: Sequence[Copies]) -> Iterator[Finding]:
    astray = [cluster for cluster in copies if len(_splits(manifest, cluster)) > 1]
    if astray:
        is_given = all(
            listed.samples[p].split == manifest.samples[p].split for cluster in astray for p in cluster.members
        )
        yield Finding(
            "leak",
            True,
            f"{counted(len(astray), 'image is', 'images are')} in more than one split"
            f"{'' if is_given else ' when `run` divides this data'}: val or test would look too good",
            "Remove each from all splits but one." if is_given else GROUPED,
            tuple(_case(manifest, cluster, apart="split") for cluster in astray),
        )


def _conflicts(manifest: Manifest, copies: Sequence[Copies]) -> Iterator[Finding]:
    torn = [cluster for cluster in copies if _are_torn(manifest, cluster)]
    if torn:
        what, advice = CONFLICT[manifest.task]
        yield Finding(
            "conflict",
            True,
            f"{counted(len(torn), 'image is', 'images are')} {what}: at most one is right",
            advice,
            tuple(_case(manifest, cluster) for cluster in torn),
        )


def _groups_astray(manifest: Manifest) -> Iterator[Finding]:
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(manifest.samples):
        if sample.group:
            groups.setdefault(sample.group, []).append(place)
    astray = {name: places for name, places in groups.items() if len({manifest.samples[p].split for p in places}) > 1}
    if astray:
        yield Finding(
            "group-leak",
            True,
            f"{counted(len(astray), 'group is', 'groups are')} in more than one split: val or test would look too good",
            "Give all images of a group one split, or leave the split to `run`.",
            tuple(
                Case(tuple(seen(manifest, p) for p in places), f"group {name}", {"group": name})
                for name, places in astray.items()
            ),
        )


def _unmeasured(manifest: Manifest) -> Iterator[Finding]:
    counts = {split: manifest.counts(split) for split in SPLITS if manifest.split(split)}
    lacking = {name: [split for split in counts if not counts[split][name]] for name in manifest.classes}
    totals = manifest.counts()
    notes = {
        name: f"{counted(totals[name], 'image')}, none in {' and '.join(splits)}" if totals[name] else "no usable image"
        for name, splits in lacking.items()
        if splits or not totals[name]
    }
    if notes:
        yield Finding(
            "too-few",
            True,
            f"{counted(len(notes), 'class has', 'classes have')} too few images to be in every split",
            "Add images (from other groups, if there are groups), or remove the class.",
            tuple(Case((), f"{name}: {note}", {"class": name}) for name, note in notes.items()),
        )
    if len(manifest.classes) < TASKS[manifest.task].fewest_classes:
        there = f"one class only, {manifest.classes[0]}" if manifest.classes else "no class"
        text = f"there is {there}: a classifier needs two or more"
        yield Finding("too-few", True, text, "Expected a folder or a label for each class.")


def _unused(manifest: Manifest) -> Iterator[Finding]:
    total = len(manifest.problems) + len(manifest.samples)
    for is_of_row, (kind, what, advice) in UNUSED.items():
        problems = [problem for problem in manifest.problems if problem.is_of_row is is_of_row]
        if problems:
            share = len(problems) / total
            yield Finding(
                kind,
                share > MOST_DAMAGED,
                f"{counted(len(problems), what)} of {total:,} ({share:.1%}) cannot be used; `run` leaves them out",
                advice,
                tuple(Case((Seen(p.file),), p.reason, {"reason": p.reason}) for p in problems),
            )


def _harmless_copies(manifest: Manifest, copies: Sequence[Copies]) -> Iterator[Finding]:
    plain = [cluster for cluster in copies if len(_splits(manifest, cluster)) == 1 and not _are_torn(manifest, cluster)]
    if plain:
        extra = sum(len(cluster.members) - 1 for cluster in plain)
        same = "within one class and split" if manifest.task == "classify" else "with one label and split"
        yield Finding(
            "copies",
            False,
            f"{counted(len(plain), 'image is', 'images are')} present more than once, {same}",
            f"{counted(extra, 'copy', 'copies')} could go: an image that occurs twice counts twice.",
            tuple(_case(manifest, cluster) for cluster in plain),
        )


def _blank(manifest: Manifest, looks: Looks) -> Iterator[Finding]:
    blank = np.flatnonzero(looks["contrast"] < BLANK).tolist()
    if blank:
        yield Finding(
            "blank",
            False,
            f"{counted(len(blank), 'image is', 'images are')} blank or nearly so",
            "Look at them: is there anything to see?",
            tuple(Case((seen(manifest, place),)) for place in blank),
        )


def _imbalance(manifest: Manifest) -> Iterator[Finding]:
    counts = {name: count for name, count in manifest.counts().items() if count}
    if not counts:
        return
    largest, smallest = (pick(counts, key=lambda name: counts[name]) for pick in (max, min))
    if counts[largest] >= IMBALANCE * counts[smallest]:
        yield Finding(
            "imbalance",
            False,
            f"{largest} has {counts[largest]:,} images and {smallest} {counts[smallest]:,}:"
            " such a small class may never be predicted",
            "Go by macro_f1 rather than top1, where a small class hardly counts.",
        )


def _give_aways(manifest: Manifest, looks: Looks) -> Iterator[Finding]:
    labels, names = _as_classes(manifest)
    for give_away in give_aways(looks, labels, names):
        yield Finding(
            "give-away",
            False,
            f"{give_away.trait} of the images tells {give_away.share:.0%} of what there is to know about their"
            f" {'number' if manifest.task == 'regress' else 'class'}",
            "A classifier may learn this instead of the content: bring all classes into one form.",
            tuple(
                Case((), _told(value, counts), {"value": value, "counts": counts})
                for value, counts in give_away.counts.items()
            ),
        )


def _as_classes(manifest: Manifest) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return one class (N,) for each image, and the names: its class, its set of classes, or the tenth it is in."""
    if manifest.task == "classify":
        return strata_of(manifest.samples), manifest.classes
    if manifest.task == "multilabel":
        names, labels = np.unique([manifest.label(sample.target) for sample in manifest.samples], return_inverse=True)
        return labels.astype(np.int64), tuple(name or "none" for name in names.tolist())
    return strata_of(manifest.samples), tuple(f"tenth {place} of the numbers" for place in range(1, TENTHS + 1))


def _told(value: str, counts: dict[str, int]) -> str:
    shown = [f"{count:,} {name}" for name, count in list(counts.items())[:3]]
    return f"{value}: {', '.join(shown)}{', ...' if len(counts) > 3 else ''}"
