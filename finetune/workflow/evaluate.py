"""Measuring a finished run again: on a split of its data, or on another labelled set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from finetune import recipe as recipes
from finetune.checkpoint.saved import SavedRun, load_run
from finetune.data import checks, sources
from finetune.data.split import units_of
from finetune.device import Compute
from finetune.errors import DataError, check_count, did_you_mean
from finetune.evaluation.metrics import confusion, measure
from finetune.images.pixels import filled_pixels
from finetune.prepare.inputs import Inputs, problem_notes
from finetune.prepare.passes import logits_of
from finetune.train.guard import OF_A_MODEL, guarded
from finetune.types import SPLITS, Event, Interval, Manifest, OnEvent, Sample, Split, Target, ignore


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics on labelled images, and which class was taken for which (rows: true, columns: predicted)."""

    split: str
    num_images: int
    classes: tuple[str, ...]
    metrics: dict[str, Interval]
    confusion: list[list[int]]

    @property
    def never_predicted(self) -> dict[str, int]:
        """The classes that have images here and are never predicted, with the number of their images."""
        guessed = [sum(column) for column in zip(*self.confusion, strict=True)]
        there = [sum(row) for row in self.confusion]
        return {name: n for name, n, times in zip(self.classes, there, guessed, strict=True) if n and not times}


@guarded(OF_A_MODEL, is_shared=True)
def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: Split | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Measure a run's model on one split of its own data (test where it has one, else val), or of `data`.

    Of `data` the split is optional: without one, all its images are measured. `workers` are those of the run,
    unless they are given.

    Raises:
        CheckpointError: no finished run. DataError: no such split, or a class that the model lacks.
    """
    check_count("batch_size", batch_size)
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}.{did_you_mean(str(split), SPLITS)}")
    saved = load_run(run, device=device)
    recipe = saved.recipe if workers is None else recipes.update(saved.recipe, {"train.workers": workers})
    manifest = saved.manifest() if data is None else _other_data(saved, data, on_event)
    name, samples = _chosen(manifest, split, is_own=data is None, is_refit=saved.recipe.train.refit)
    preprocessing = saved.backbone.preprocessing
    pixels = filled_pixels(manifest.root, preprocessing=preprocessing, settings=recipe.cache)
    inputs = Inputs(recipe, manifest, saved.backbone, pixels, Compute.of(recipe.train))
    with inputs.compute.in_force():
        kept = checks.unchanged(replace(manifest, samples=samples)).samples  # others are read from their files
        logits, targets = logits_of(inputs, kept, batch_size=batch_size)
    metrics = measure(logits, targets, units=units_of(samples))
    return Evaluation(name, len(samples), saved.classes, metrics, confusion(logits, targets))


def _chosen(manifest: Manifest, split: Split | None, *, is_own: bool, is_refit: bool) -> tuple[str, tuple[Sample, ...]]:
    if split is None and not is_own:
        return "all", manifest.samples
    there = [name for name in SPLITS if manifest.split(name)]
    name = split or ("test" if "test" in there else "val")
    if name not in there and is_own and is_refit:
        raise DataError(
            f"this model was refitted on train and val: no {name} split is left to measure it on",
            hint="Its metrics.json has those of the first fit; a run sets a test split aside with --test 0.2.",
        )
    if name not in there:
        raise DataError(
            f"this data has no {name} split",
            hint=f"It has {', '.join(there) or 'none'}; a run sets one aside with --test 0.2.",
        )
    return name, manifest.split(name)


def _other_data(saved: SavedRun, data: str | Path, on_event: OnEvent) -> Manifest:
    """Read other data and give its labels the indices that the model knows them by."""
    read = sources.read(
        data,
        image_column=saved.recipe.data.image_column,
        label_column=saved.recipe.data.label_column,
        split_column=saved.recipe.data.split_column,
        group_by=saved.recipe.data.group_by,
        layout=saved.recipe.data.layout,
        needs_two_classes=False,
        needs_splits=False,
        needs_groups=False,
    )
    strange = [name for name in read.classes if name not in saved.classes]
    if strange:
        raise DataError(
            f"the model does not know the class {strange[0]!r}.{did_you_mean(strange[0], saved.classes)}",
            hint=f"It knows {', '.join(saved.classes)}.",
        )
    index = {place: saved.classes.index(name) for place, name in enumerate(read.classes)}
    value_range = saved.backbone.preprocessing.value_range
    scanned = checks.scan(read, value_range=value_range, is_for_model=True, on_event=on_event)
    for note in (*scanned.notes, *problem_notes(scanned)):
        on_event(Event.warning(note))
    samples = tuple(Sample(s.file, Target(index[s.target.index]), s.split, s.group, s.digest) for s in scanned.samples)
    return Manifest(scanned.root, saved.classes, samples, scanned.problems, scanned.notes)
