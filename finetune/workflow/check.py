"""What is wrong with a data set, before anything is trained on it.

Images are judged by the scan and by small copies of them; labels and odd images by a classifier on a
frozen backbone's features, which are kept in the feature cache for a later run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from finetune import inline
from finetune import recipe as recipes
from finetune.arguments import Settings, typed
from finetune.backbone.load import Backbone
from finetune.backbone.weights import refuse_random
from finetune.bands import Bands
from finetune.data import checks, split
from finetune.data.findings import Case, Finding, Seen, picture_findings, seen
from finetune.data.grouping import table_of, with_groups
from finetune.data.near_duplicates import ALIKE, copies_of
from finetune.data.places import check_outside, shards_named
from finetune.data.summary import Pictures, pictures_of, shown_shares
from finetune.data.targets import known_target, strata_of
from finetune.device import Compute
from finetune.errors import DataError, FindingsError, RecipeError, printable
from finetune.features.outliers import odd_ones
from finetune.images.thumbnails import Looks, looks_of
from finetune.prepare.asked import recipe_of
from finetune.prepare.doubts import Doubts, doubts_of
from finetune.prepare.head_features import features_of
from finetune.prepare.inputs import (
    Inputs,
    architecture_of,
    at_range,
    computing_as,
    list_data,
    load_backbone,
    pixels_of,
    range_named,
    with_backbone,
    with_task,
)
from finetune.report import sheet as sheets
from finetune.settings import Recipe
from finetune.tasks import TASKS, Task
from finetune.train.guard import guarded
from finetune.types import SPLITS, Event, Interval, Manifest, OnEvent, ignore, to_json
from finetune.whole import check_new_file, write_text
from finetune.wording import counted

LEAST_ALIKE = 0.9
ON_SHEET = 12  # images of each finding
STRONG = 0.9  # top1 from which most doubts are worth a look
WEAK = "Many will be hard images: a backbone that knows them better (--backbone, --weights) doubts fewer."


@dataclass(frozen=True, slots=True)
class Judged:
    """What judged labels and odd images: the backbone, and how often its classifier was right.

    With several classes or numbers, `scores` has mAP or R2 of its linear model in place of top1.
    """

    backbone: str
    top1: Interval | None
    num_images: int
    num_independent: int  # of these images: copies and members of a group count once
    scores: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """What a data set is, and what is wrong with it, starting with what spoils a result."""

    data: str
    root: str
    num_images: int
    classes: dict[str, dict[str, int]]
    pictures: Pictures
    notes: tuple[str, ...]
    judged: Judged | None
    findings: tuple[Finding, ...]
    task: Task = "classify"

    @property
    def spoiling(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.spoils)

    def raise_if_spoiled(self) -> None:
        """Raise an error if anything would spoil a result.

        Raises:
            FindingsError: something would.
        """
        if self.spoiling:
            kinds = ", ".join(finding.kind for finding in self.spoiling)
            raise FindingsError(
                f"{counted(len(self.spoiling), 'finding')} would spoil a result: {kinds}",
                hint="Fix the data and check again. --json lists every image of every finding.",
            )

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        told = inline.html_lines(f"{counted(self.num_images, 'image')}: {self.data}", *self.notes)
        rows = ([one.kind, "yes" if one.spoils else "no", one.text, one.advice] for one in self.findings)
        return told + inline.html_table(["finding", "spoils results", "what", "way out"], rows)

    def to_json(self) -> dict[str, Any]:
        """Return the check as one JSON document."""
        return {
            "data": self.data,
            "root": self.root,
            "num_images": self.num_images,
            "task": self.task,
            "classes": self.classes,
            "pictures": to_json(self.pictures),
            "notes": list(self.notes),
            "judged": to_json(self.judged) if self.judged else None,
            "spoils": bool(self.spoiling),
            "findings": [_finding_json(finding) for finding in self.findings],
        }


@guarded()
@typed
def check(
    data: str | Path | None = None,
    *,
    quick: bool = False,
    alike: float = ALIKE,
    sheet: str | Path | None = None,
    groups: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Check:
    """Find what is wrong with a data set, under the split that a run with the same settings would make.

        finetune.check("imgs", quick=True).raise_if_spoiled()

    `quick` leaves out what needs a backbone: suspicious labels and odd images. `alike` is the least
    correlation of near copies (1: exact copies only). `sheet` names a PNG for the worst images,
    `groups` a CSV that `run` takes with `group_by="group"` to keep copies in one split.

    Raises:
        DataError, BackboneError, RecipeError, ResourceError, TrainingError: what cannot be used, and the way out.
    """
    if not LEAST_ALIKE <= alike <= 1:
        raise RecipeError(f"--alike {alike:g}: between {LEAST_ALIKE:g} and 1, please", hint=f"The default is {ALIKE}.")
    for path, suffix in ((sheet, ".png"), (groups, ".csv")):
        if path is not None:
            check_new_file(Path(path), suffix)
    chosen = _as_probe(recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides))
    _check_shares(chosen)
    if sheet is not None:
        check_outside(Path(sheet), chosen.data.path, flag="--sheet")
    if groups is not None and shards_named(chosen.data.path) is not None:
        raise RecipeError(
            "--groups writes a table of files, and images in shards are not files",
            hint="Check the folder that they were made from, and give the table to `finetune shard`: it keeps groups.",
        )
    if not quick:
        chosen = with_backbone(chosen, on_event=on_event)
    with computing_as(chosen, on_event=on_event) as compute:
        checked, grouped = _check(chosen, compute, alike=alike, quick=quick, on_event=on_event)
    if groups is not None:
        write_text(Path(groups), table_of(grouped, Path(groups).parent))
    if sheet is not None:
        _write_sheet(Path(sheet), Path(checked.root), checked.findings)
    return checked


def _check(chosen: Recipe, compute: Compute, *, alike: float, quick: bool, on_event: OnEvent) -> tuple[Check, Manifest]:
    """Return the check, and the data with its copies as groups."""
    of = None if quick else architecture_of(chosen)
    listed = list_data(chosen, is_to_train=False)
    chosen = with_task(chosen, listed)
    backbone = load_backbone(chosen, of, compute, num_classes=len(listed.classes)) if of else None
    if backbone:
        refuse_random(backbone.weights, backbone.groups)
    pixels = pixels_of(chosen, listed, backbone) if backbone else None
    scanned = checks.scan(
        listed, pixels=pixels, needs_all_classes=False, value_range=range_named(chosen), on_event=on_event
    )
    backbone = backbone and at_range(backbone, scanned)
    manifest, indivisible = _divided(chosen, scanned)
    looks = looks_of(scanned, settings=chosen.cache, on_event=on_event)
    copies = copies_of(looks, [sample.digest for sample in scanned.samples], alike=alike)
    findings = [*indivisible, *picture_findings(scanned, manifest, looks, copies)]
    grouped, judged = with_groups(scanned, copies), None
    if backbone:
        inputs = Inputs(chosen, manifest, backbone, pixels, compute)
        judged, doubts = _judge(inputs, split.units_of(grouped.samples), on_event)
        findings += doubts
    checked = Check(
        data=chosen.data.path,
        root=manifest.root,
        num_images=len(manifest.samples),
        classes=_class_counts(manifest),
        pictures=_pictures(looks, scanned.bands, backbone),
        notes=scanned.notes,
        judged=judged,
        findings=tuple(findings),
        task=manifest.task,
    )
    return checked, grouped


def _pictures(looks: Looks, bands: Bands, backbone: Backbone | None) -> Pictures:
    """Return a summary of the images, with how much the plain view shows of them, if that is known."""
    pictures = pictures_of(looks, bands)
    if backbone is None:
        return pictures
    seen = backbone.preprocessing
    return replace(pictures, shown=shown_shares(looks, crop_pct=seen.crop_pct, crop_mode=seen.crop_mode))


def _class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Return the number of images of each class, in all and in each split."""
    parts = {name: manifest.counts(name) for name in SPLITS if manifest.split(name)}
    totals = manifest.counts()
    return {name: {"images": totals[name], **{part: parts[part][name] for part in parts}} for name in manifest.classes}


def _as_probe(recipe: Recipe) -> Recipe:
    """Return the recipe of a pass over plain images."""
    changes = {"strategy.name": "linear-probe", "strategy.top_k": "auto", "strategy.probe_at": "auto"}
    return recipes.update(recipe, changes)


def _check_shares(recipe: Recipe) -> None:
    aside = recipe.split.val + recipe.split.test
    if aside >= 1:
        raise RecipeError(f"split.val + split.test = {aside:g} leaves nothing to train on", hint="Set aside less.")


def _divided(recipe: Recipe, scanned: Manifest) -> tuple[Manifest, list[Finding]]:
    """Return the manifest as `run` would divide it; if it cannot be divided, the manifest as it is, and a finding.

    Classes without an image to train on, which `run` refuses, are left out for that.
    """
    chosen = recipe.split
    try:
        divided = split.assign_as(_trainable(scanned), chosen)
        splits = {sample.file: sample.split for sample in divided.samples}
        samples = (replace(sample, split=splits.get(sample.file, sample.split)) for sample in scanned.samples)
        return replace(scanned, samples=tuple(samples)), []
    except DataError as error:
        return scanned, [Finding("too-few", True, f"this data cannot be divided: {error.message}", error.hint)]


def _trainable(scanned: Manifest) -> Manifest:
    """Return the manifest of the classes that have images outside the user's own val and test."""
    own = [sample for sample in scanned.samples if sample.split in (None, "train")]
    there = {index for sample in own or scanned.samples for index in sample.target.classes}
    if len(there) == len(scanned.classes):
        return scanned
    classes = [name for place, name in enumerate(scanned.classes) if place in there]
    index = {name: place for place, name in enumerate(classes)}
    targets = (known_target(scanned.task, scanned.label(sample.target), index) for sample in scanned.samples)
    pairs = zip(scanned.samples, targets, strict=True)
    samples = tuple(replace(sample, target=target) for sample, target in pairs if target is not None)
    return replace(scanned, classes=tuple(classes), samples=samples)


def _judge(inputs: Inputs, units: Sequence[int], on_event: OnEvent) -> tuple[Judged, list[Finding]]:
    """Judge labels and look for odd images, in the features of all images, whatever their split."""
    recipe, manifest = inputs.recipe, inputs.manifest

    def told(event: Event) -> None:
        if event.kind in ("progress", "warning"):  # how a phase would be computed does not matter here
            on_event(event)

    samples = [replace(sample, split="train") for sample in manifest.samples]
    features, targets = features_of(inputs, samples, on_event=told)
    seed, has_one_class = recipe.train.seed, manifest.task == "classify"
    doubts = doubts_of(manifest, features, targets, units, seed=seed)
    of_judged = [unit for unit, is_one in zip(units, doubts.is_judged.tolist(), strict=True) if is_one]
    judged = Judged(
        inputs.backbone.architecture.label,
        doubts.score if has_one_class else None,
        len(of_judged),
        len(set(of_judged)),
        {} if has_one_class else {TASKS[manifest.task].score: doubts.score},
    )
    odd = _odd(manifest, features, torch.from_numpy(strata_of(samples)), units, seed)
    return judged, [finding for finding in (_doubted(manifest.task, doubts), odd) if finding.cases]


def _doubted(task: Task, doubts: Doubts) -> Finding:
    score = doubts.score.value
    if task == "classify":
        by = f"a linear classifier doubts them, which is right on {score:.1%} of the images not used to fit it"
    else:
        by = f"a linear model doubts them, which has {TASKS[task].score} {score:.2f} on images not used to fit it"
    return Finding(
        "label",
        False,
        f"{counted(len(doubts.cases), 'label')} may be wrong: {by}",
        "Look at the first ones. " + (WEAK if score < STRONG else "Wrong labels stand among hard images."),
        doubts.cases,
    )


def _odd(manifest: Manifest, features: Tensor, targets: Tensor, units: Sequence[int], seed: int) -> Finding:
    cases = tuple(
        Case(
            (seen(manifest, image.place),),
            f"{image.deviations:.1f} deviations off",
            {"distance": image.distance, "usual": image.usual, "deviations": image.deviations},
        )
        for image in odd_ones(features, targets, units, seed=seed)
    )
    return Finding(
        "odd",
        False,
        f"{counted(len(cases), 'image is', 'images are')} unlike all the others",
        "Look at them: do they belong here?",
        cases,
    )


def _write_sheet(path: Path, root: Path, findings: Sequence[Finding]) -> None:
    sections = []
    for finding in findings:
        pairs = [(case, file) for case in finding.cases for file in case.files[:2]][:ON_SHEET]
        cells = tuple(sheets.Cell(root / file.file, _caption(case, file)) for case, file in pairs)
        if cells:
            sections.append(sheets.SheetSection(printable(f"{finding.kind}: {finding.text}"), cells))
    sheets.write(path, sections)


def _caption(case: Case, file: Seen) -> tuple[str, ...]:
    of = ", ".join(part for part in (file.label, file.split) if part)
    return tuple(printable(line) for line in (file.file, of, case.note))


def _finding_json(finding: Finding) -> dict[str, Any]:
    cases = [
        {"files": [{"file": file.file, "class": file.label, "split": file.split} for file in case.files], **case.facts}
        for case in finding.cases
    ]
    return {**{name: getattr(finding, name) for name in ("kind", "spoils", "text", "advice")}, "cases": cases}
