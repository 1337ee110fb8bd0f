"""Finished runs that are combined: whether they can be, and what each says of the same images.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import recipe as recipes
from finetune.arguments import each_of
from finetune.checkpoint.saved import SavedRun, load_run
from finetune.data import checks
from finetune.data.places import check_outside
from finetune.data.split import units_of
from finetune.device import Compute
from finetune.errors import CheckpointError, RecipeError
from finetune.evaluation.ensembles import Judge, score_gain
from finetune.evaluation.labels import best_thresholds
from finetune.evaluation.metrics import measure_task
from finetune.evaluation.views import Tta
from finetune.images.pixels import filled_pixels
from finetune.prepare.inputs import Inputs
from finetune.prepare.passes import logits_of
from finetune.tasks import TASKS, Task
from finetune.train.objectives import objective_of
from finetune.types import Event, Interval, Manifest, OnEvent, Sample, Split, ignore, to_json
from finetune.wording import listed

JUDGED: tuple[Split, ...] = ("val", "test")


@dataclass(frozen=True, slots=True)
class AskedSplit:
    """A split that every member is asked about: its images, their targets, and each member's outputs (N, K)."""

    samples: tuple[Sample, ...]
    targets: Tensor
    outputs: tuple[Tensor, ...]

    @property
    def units(self) -> list[int]:
        return units_of(self.samples)


@dataclass(frozen=True, slots=True)
class Members:
    """Runs of one task, with the same classes and val and test images, and their outputs on those."""

    runs: tuple[SavedRun, ...]
    manifest: Manifest
    judged: dict[Split, AskedSplit]

    @property
    def task(self) -> Task:
        return self.runs[0].task

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(run.folder.path for run in self.runs)


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One of several combined runs: how often it takes part, and its metrics by split and name."""

    run: Path
    count: int
    metrics: dict[str, dict[str, Interval]]


@dataclass(frozen=True, slots=True)
class Joined:
    """What combined runs reach on each split, and by how much they beat the best one.

    The best run is the best on val; `gains` are its differences, paired image by image.
    """

    metrics: dict[str, dict[str, Interval]]
    members: tuple[MemberFacts, ...]
    best: Path
    gains: dict[str, Interval]
    thresholds: tuple[float, ...]


def join_members(members: Members, outputs: Mapping[Split, Tensor], counts: Sequence[int]) -> Joined:
    """Return how outputs (N, K) on each split compare with those of the members, weighted by how often each took part.

    The thresholds of several classes are chosen on val.
    """
    task, val = members.task, members.judged.get("val")
    thresholds: tuple[float, ...] = ()
    if task == "multilabel":
        thresholds = best_thresholds(outputs["val"], val.targets) if val else members.runs[0].thresholds
    place = best_member(members)
    facts = []
    for number, (run, count) in enumerate(zip(members.runs, counts, strict=True)):
        own = {
            str(name): measure_task(
                task, judged.outputs[number], judged.targets, units=judged.units, thresholds=run.thresholds
            )
            for name, judged in members.judged.items()
        }
        facts.append(MemberFacts(run.folder.path, count, own))
    metrics, gains = {}, {}
    for name, judged in members.judged.items():
        units = judged.units
        metrics[str(name)] = measure_task(task, outputs[name], judged.targets, units=units, thresholds=thresholds)
        gains[str(name)] = score_gain(task, outputs[name], judged.outputs[place], judged.targets, units=units)
    return Joined(metrics, tuple(facts), members.paths[place], gains, thresholds)


def joined_facts(found: Joined) -> dict[str, Any]:
    """Return what combined runs reach, as JSON."""
    facts: dict[str, Any] = to_json(found)
    facts["best"] = str(found.best)
    for member, own in zip(found.members, facts["members"], strict=True):
        own["run"] = str(member.run)
    return facts


def best_member(members: Members) -> int:
    """Return the index of the run with the highest score on val (else on test); among equals, the lowest loss."""
    judged = next(members.judged[name] for name in JUDGED if name in members.judged)
    judge = judge_of(members.task, judged.targets)
    ranks = [(score, -loss) for score, loss in map(judge, judged.outputs)]
    return max(range(len(ranks)), key=ranks.__getitem__)


def judge_of(task: Task, targets: Tensor) -> Judge:
    """Return a function that returns the score and the loss of outputs (N, K) against targets."""
    objective = objective_of(task)
    exact = targets.double() if targets.is_floating_point() else targets
    return lambda outputs: (objective.score(outputs, targets), float(objective.loss(outputs.double(), exact)))


def logits_on(
    saved: SavedRun,
    manifest: Manifest,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: int | None = None,
    tta: Tta = "none",
    on_event: OnEvent = ignore,
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) of a finished run on images, as evaluation sees them, and their targets.

    `workers` are those of the run, unless they are given. With a `tta` the logits are the mean over its views.
    """
    recipe = saved.recipe if workers is None else recipes.update(saved.recipe, {"train.workers": workers})
    preprocessing = saved.backbone.preprocessing
    pixels = filled_pixels(manifest.root, preprocessing=preprocessing, settings=recipe.cache)
    inputs = Inputs(recipe, manifest, saved.backbone, pixels, Compute.of(recipe.train))
    with inputs.compute.in_force():
        kept = checks.unchanged(replace(manifest, samples=tuple(samples))).samples  # others are read from their files
        return logits_of(inputs, kept, batch_size=batch_size, tta=tta, on_event=on_event)


def load_members(
    runs: Sequence[str | Path],
    *,
    what: str,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Members:
    """Return several finished runs and their outputs on val and test; `what` they become, at `out`, stands in errors.

    Raises:
        RecipeError: fewer than two runs, one twice, or a place inside of their data.
        CheckpointError: runs that cannot be judged on the same images.
    """
    paths = [Path(run) for run in each_of(runs)]
    if len(paths) < 2:
        raise RecipeError(f"{what} of {len(paths)} run: name two or more")
    twice = next((path for place, path in enumerate(paths) if path.resolve() in _resolved(paths[:place])), None)
    if twice is not None:
        raise RecipeError(f"{twice} is named twice", hint="Name each run once; --greedy may weight one.")
    loaded = [load_run(path, device=device) for path in paths]
    if out is not None:
        for run in loaded:
            check_outside(Path(out), run.recipe.data.path)
    manifests = [run.manifest() for run in loaded]
    for run, manifest in zip(loaded[1:], manifests[1:], strict=True):
        _check_alike(loaded[0], manifests[0], run, manifest, what)
    splits = [name for name in JUDGED if manifests[0].split(name)]
    if not splits:
        raise CheckpointError(
            f"{paths[0]} has neither val nor test images: nothing to measure {what} on",
            hint="A refit trains on val; a run sets a test split aside with --test 0.2.",
        )
    judged = {}
    for name in splits:
        found = []
        for number, (run, manifest) in enumerate(zip(loaded, manifests, strict=True), 1):
            found.append(logits_on(run, manifest, manifest.split(name), batch_size=batch_size, workers=workers))
            on_event(Event.progress(f"runs judged on {name}", number, len(loaded)))
        judged[name] = AskedSplit(manifests[0].split(name), found[0][1], tuple(outputs for outputs, _ in found))
    return Members(tuple(loaded), manifests[0], judged)


def _resolved(paths: Sequence[Path]) -> set[Path]:
    return {path.resolve() for path in paths}


def _check_alike(first: SavedRun, manifest: Manifest, other: SavedRun, others: Manifest, what: str) -> None:
    """Check that two runs answer the same question on the same images.

    Raises:
        CheckpointError: they do not.
    """
    pair = f"{first.folder.path} and {other.folder.path} cannot be {what}"
    if first.task != other.task:
        tells = " and ".join(TASKS[run.task].what for run in (first, other))
        raise CheckpointError(f"{pair}: one gives an image {tells.replace(' and ', ', the other ')}")
    if first.classes != other.classes:
        strange = sorted(set(first.classes) ^ set(other.classes)) or ["the same in another order"]
        raise CheckpointError(f"{pair}: their classes are not the same ({listed(strange)})")
    for name in JUDGED:
        own, theirs = (_images(one, name) for one in (manifest, others))
        if own != theirs:
            differing = sorted({file for file, *_ in own ^ theirs})
            raise CheckpointError(
                f"{pair}: their {name} images are not the same ({len(own)} and {len(theirs)}, e.g. {differing[0]})",
                hint="What one has trained on would be val of the other. Runs on the same data with the same"
                " --val, --test and split.seed, and without --refit, have the same split.",
            )


def _images(manifest: Manifest, name: Split) -> set[tuple[str, str, str]]:
    return {(sample.file, sample.digest, manifest.label(sample.target)) for sample in manifest.split(name)}
