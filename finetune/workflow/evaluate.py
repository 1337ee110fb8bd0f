"""Measuring a finished run again: on a split of its data, or on another labelled data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import inline
from finetune import recipe as recipes
from finetune.arguments import typed
from finetune.checkpoint.lineage import contents_seen
from finetune.data import checks, sources
from finetune.data.balance import never_among
from finetune.data.split import units_of
from finetune.data.targets import known_target, target_of
from finetune.errors import DataError, RecipeError, check_count, did_you_mean
from finetune.evaluation.answers import answers
from finetune.evaluation.by_class import ClassFigures, figures_by_class
from finetune.evaluation.corruptions import UnderCorruption, check_severities
from finetune.evaluation.metrics import confusions, measure_task
from finetune.evaluation.views import Tta, check_tta
from finetune.prepare.inputs import problem_notes
from finetune.runs.answering import chosen_export, open_model
from finetune.runs.corrupting import under_corruption
from finetune.runs.judging import JudgedModel, judged
from finetune.settings import Recipe
from finetune.tasks import TASKS, Task
from finetune.train.guard import OF_A_MODEL, guarded
from finetune.types import SPLITS, Event, Interval, Manifest, OnEvent, Sample, Split, ignore, to_json
from finetune.wording import counted, listed

READING = ("image_column", "label_column", "split_column", "group_by", "layout", "label_separator")  # keys of data


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics on labelled images, and which class was taken for which: (true, predicted, count) where it occurs.

    If an image may have several classes, `by_class` has how well each is recognised; then, and for numbers, there are
    no pairs.
    """

    split: str
    num_images: int
    classes: tuple[str, ...]
    metrics: dict[str, Interval]
    confusions: tuple[tuple[int, int, int], ...]
    never_predicted: dict[str, int]  # classes that have images here, and how many
    task: Task = "classify"
    by_class: tuple[ClassFigures, ...] = ()
    tta: Tta = "none"  # the views that the answers are the mean over
    corruption: UnderCorruption | None = None  # if it was asked for

    @property
    def confusion(self) -> list[list[int]]:
        """All counts as a matrix (rows: true classes, columns: predicted ones); empty if there are no pairs."""
        matrix = [[0] * len(self.classes) for _ in self.classes] if self.confusions else []
        for true, guess, count in self.confusions:
            matrix[true][guess] = count
        return matrix

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        told = inline.html_lines(f"{counted(self.num_images, 'image')} of {self.split}")
        return told + inline.html_metrics({self.split: self.metrics}, first="split")

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as one JSON document."""
        facts = {name: value for name, value in to_json(self).items() if name != "confusions"}
        if self.corruption is not None:
            facts["corruption"]["means"] = list(self.corruption.means)
        return {**facts, "confusion": self.confusion}


@guarded(OF_A_MODEL, is_shared=True)
@typed
def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: Split | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    tta: Tta = "none",
    corrupt: Sequence[int] = (),
    known_only: bool = False,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Measure a model on one split of the data that it was trained on (test where it has one, else val), or of `data`.

    `run` is a finished run; or an ONNX file, an ensemble, a folder of exports or of timm, which may know no data of
    their own. For `data` the split is optional: without one, all its images are measured. `workers` are those of the
    run by default. `tta` "flip" measures the mean of the logits of each image and its mirror image, "5crop" the mean
    over its four corners and its middle. `corrupt` names severities, 1 to 5, at which images are corrupted in fifteen
    ways (see `evaluation.corruptions`) and the first metric is measured again. With `known_only`, images of `data` that
    show a class that the model does not know are left out and counted. `overrides` are keys of the recipe that say how
    `data` is read, where not as the run's own: {"data.label_column": "y"}.

    Raises:
        CheckpointError: no finished run. ExportError: no ONNX file of ours, or not the one that was proven.
        DataError: no such split, or a class that the model lacks. RecipeError: an ONNX file on another device; views or
            corruptions that its images cannot have.
    """
    check_count("batch_size", batch_size)
    check_tta(tta)
    severities = check_severities(corrupt, tta=tta)
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}.{did_you_mean(str(split), SPLITS)}")
    if known_only and data is None:
        raise RecipeError(
            "known_only is for other data: a model knows the classes of its own", hint="Name the data as well."
        )
    _check_reading(overrides or {}, has_data=data is not None)
    model = open_model(run)
    if model.file is not None:
        chosen_export(model, "auto", device, num_images=None, on_event=on_event)  # which refuses another device
    of = judged(model, device=device, on_event=on_event)
    of.check_views(tta)
    by_pixels = of.of_pixels() if severities else None
    manifest = of.manifest() if data is None else _other_data(of, data, known_only, overrides or {}, on_event)
    name, samples = _chosen(manifest, split, is_own=data is None, is_refit=of.is_refit)
    if data is not None or name != "train":
        _check_unseen(name, samples, of, is_own=data is None, on_event=on_event)
    logits, targets = of.logits(manifest, samples, batch_size=batch_size, workers=workers, tta=tta)
    task, limits = of.task, of.thresholds
    metrics = measure_task(task, logits, targets, units=units_of(samples), thresholds=limits)
    said = answers(task, logits, limits)
    corruption = None
    if by_pixels is not None:
        files = [Path(manifest.root, sample.file) for sample in samples]
        clean = metrics[TASKS[task].score].value
        corruption = under_corruption(
            by_pixels, files, targets, severities, task=task, clean=clean, batch_size=batch_size, on_event=on_event
        )
    return Evaluation(
        split=name,
        num_images=len(samples),
        classes=of.classes,
        metrics=metrics,
        confusions=confusions(logits, targets) if task == "classify" else (),
        never_predicted=never_among(of.classes, [sample.target for sample in samples], said),
        task=task,
        by_class=figures_by_class(of.classes, logits, targets, limits) if task == "multilabel" else (),
        tta=tta,
        corruption=corruption,
    )


def _chosen(manifest: Manifest, split: Split | None, *, is_own: bool, is_refit: bool) -> tuple[str, tuple[Sample, ...]]:
    if split is None and not is_own:
        return "all", manifest.samples
    there = [name for name in SPLITS if manifest.split(name)]
    name = split or ("test" if "test" in there else "val")
    if name not in there and is_own and is_refit:
        raise DataError(
            f"this model was refitted on train and val: no {name} split is left to measure it on",
            hint="Its metrics.json has the first fit's; a run sets a test split aside with --test 0.2.",
        )
    if name not in there:
        raise DataError(
            f"this data has no {name} split",
            hint=f"It has {', '.join(there) or 'none'}; a run sets one aside with --test 0.2.",
        )
    return name, manifest.split(name)


def _check_reading(overrides: Mapping[str, Any], *, has_data: bool) -> None:
    strange = [key for key in overrides if key.removeprefix("data.") not in READING or not key.startswith("data.")]
    if strange:
        hint = f"These do: {listed(f'data.{name}' for name in READING)}."
        raise RecipeError(f"{strange[0]} does not say how data is read", hint=hint)
    if overrides and not has_data:
        raise RecipeError(
            f"{next(iter(overrides))} is for other data: a run's own is read as it was", hint="Name the data as well."
        )


def _other_data(
    of: JudgedModel, data: str | Path, known_only: bool, overrides: Mapping[str, Any], on_event: OnEvent
) -> Manifest:
    """Read other data and give its labels the model's indices."""
    how = recipes.update(Recipe(data=of.data), overrides).data
    read = sources.read(
        data,
        image_column=how.image_column,
        label_column=how.label_column,
        split_column=how.split_column,
        group_by=how.group_by,
        layout=how.layout,
        task=of.task,
        separator=how.label_separator,
        needs_two_classes=False,
        needs_train=False,
        needs_splits=False,
        needs_groups=False,
    )
    strange = [name for name in read.classes if name not in of.classes] if of.task != "regress" else []
    if strange:
        read = _without(read, strange, of.classes, known_only, on_event)
    read = replace(read, bands=of.bands)
    scanned = checks.scan(
        read, needs_all_classes=False, value_range=of.value_range, is_for_model=True, on_event=on_event
    )
    for note in (*scanned.notes, *problem_notes(scanned)):
        on_event(Event.warning(note))
    index = {name: place for place, name in enumerate(of.classes)}
    samples = tuple(
        replace(sample, target=target_of(of.task, scanned.label(sample.target), index)) for sample in scanned.samples
    )
    return Manifest(scanned.root, of.classes, samples, scanned.problems, scanned.notes, task=of.task)


def _check_unseen(name: str, samples: Sequence[Sample], of: JudgedModel, *, is_own: bool, on_event: OnEvent) -> None:
    """Tell how many images the model was trained on, by their content, in its own run or in those before it.

    Raises:
        DataError: it joins folds, each of which was trained on what is val of another.
    """
    seen = set() if of.origin is None else contents_seen(of.origin)
    count = sum(sample.digest in seen for sample in samples)
    if not count:
        return
    if is_own and of.origin is not None and of.origin.several.is_file():
        raise DataError(
            f"this model joins folds, trained on {count:,} of the {counted(len(samples), 'image')} of {name}",
            hint="out_of_fold.csv and the report have every image judged by the run that has not seen it; a set with"
            " --test 0.2 has images that none has seen.",
        )
    on_event(
        Event.warning(
            f"the model was trained on {count:,} of these {counted(len(samples), 'image')}: on images that it has not"
            " seen, fewer may be right"
        )
    )


def _without(
    read: Manifest, strange: Sequence[str], known: Sequence[str], known_only: bool, on_event: OnEvent
) -> Manifest:
    """Return data without the images that show a class that the model does not know, where that is asked for.

    Raises:
        DataError: it is not, or none is left.
    """
    told = f"the model does not know the class{'es' if len(strange) > 1 else ''} {listed(map(repr, strange))}"
    classes = tuple(name for name in read.classes if name not in strange)
    index = {name: place for place, name in enumerate(classes)}
    targets = [known_target(read.task, read.label(sample.target), index) for sample in read.samples]
    pairs = zip(read.samples, targets, strict=True)
    left = tuple(replace(sample, target=target) for sample, target in pairs if target is not None)
    if not known_only or not left:
        more = (
            ". --known-only measures only the images of these." if left else ", and no image here shows one of these."
        )
        raise DataError(f"{told}.{did_you_mean(strange[0], known)}", hint=f"It knows {listed(known)}{more}")
    count = counted(len(read.samples) - len(left), "image")
    on_event(Event.warning(f"{told}: {count} left out, and {len(left):,} measured"))
    return replace(read, classes=classes, samples=left)
