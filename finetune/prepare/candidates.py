"""Which backbone is nearest to some data: one frozen pass of each over a sample of train, then scores.

What a backbone yields for an image is kept in the feature cache, where a later run that trains its
head alone finds it too.

Letters: N images, D features.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from finetune import recipe as recipes
from finetune.arguments import Settings
from finetune.backbone.automatic import NO_HUB_HINT
from finetune.backbone.cost import multiplications
from finetune.backbone.folder import is_folder
from finetune.backbone.packaged import INSTALL
from finetune.backbone.shortlist import on_this_machine, standing
from finetune.data.split import first_of_units, units_of
from finetune.data.targets import target_array
from finetune.device import Compute
from finetune.errors import BackboneError, DataError, FinetuneError, Interrupted, RecipeError
from finetune.features.scores import h_score, knn_top1, logme, logme_of_values
from finetune.prepare.asked import recipe_of
from finetune.prepare.head_features import features_of
from finetune.prepare.inputs import (
    Inputs,
    architecture_of,
    at_range,
    computing_as,
    list_data,
    load_backbone,
    read_data,
)
from finetune.settings import Recipe
from finetune.strategy import rank as ranking
from finetune.strategy.evidence import MOST_PROBED, stratified_sample
from finetune.strategy.probing import PROBES
from finetune.strategy.rank import Candidate, Ranking
from finetune.tasks import TASKS, Task
from finetune.train.guard import guarded
from finetune.types import FEWEST_PROBED, Event, Manifest, OnEvent, Sample, ignore, to_json

LOCAL_HINT = (
    "Give folders of weights on this machine: `finetune backbones rank --data DIR weights/*`; or add some by"
    f" the package index: `{INSTALL}`; or copy the hub's cache from another machine (HF_HOME names its place)."
)


@dataclass(frozen=True, slots=True)
class FailedCandidate:
    """A candidate that could not be measured, and why."""

    name: str
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """Candidates in order, those that failed, and how many images they were measured on; copies and groups
    count once among the independent ones."""

    ranking: Ranking
    failed: tuple[FailedCandidate, ...]
    num_images: int
    num_independent: int
    num_classes: int
    task: Task = "classify"

    @property
    def metric(self) -> str:
        """What candidates are ranked by."""
        return TASKS[self.task].score

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as one JSON document; what each said of every image is left out."""
        ranked = self.ranking
        predicted, left = f"predicted_{self.metric.lower()}", ("name", "predicted", "judged", "units")
        return {
            "task": self.task,
            "num_images": self.num_images,
            "num_independent": self.num_independent,
            "num_classes": self.num_classes,
            "recommended": ranked.recommended,
            "reason": ranked.reason,
            "strongest": ranked.strongest,
            "shortlist": list(ranked.shortlist),
            "remarks": list(ranked.remarks),
            "candidates": [
                {"name": candidate.name, predicted: to_json(candidate.predicted)}
                | {key: value for key, value in to_json(candidate).items() if key not in left}
                for candidate in ranked.candidates
            ],
            "failed": [to_json(failure) for failure in self.failed],
        }


def rank(
    data: str | Path | None = None,
    candidates: Sequence[str | Path] = (),
    *,
    sample: int = MOST_PROBED,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Ranked:
    """Rank backbones for a data set by what a linear model on their features reaches: top1, mAP or R2, by the task.

        finetune.rank("imgs", ["resnet18.a1_in1k", "weights/mobilenetv2_100", "resnet18.a1_in1k@160"])

    A candidate is a timm name, `hf-hub:OWNER/NAME` or a weights folder, with `@PIXELS` for another
    image size. Without candidates: those of a short list whose weights are on this machine. One that
    cannot be used is told with its reason and does not stop the others.

    Raises:
        BackboneError: none of the candidates can be used.
        DataError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    with computing_as(chosen, on_event=on_event):
        return _rank(chosen, candidates, sample, on_event)


def _rank(chosen: Recipe, candidates: Sequence[str | Path], sample: int, on_event: OnEvent) -> Ranked:
    names = tuple(dict.fromkeys(map(str, candidates))) or on_this_machine()
    manifest = read_data(chosen, list_data(chosen), on_event=on_event)
    samples = stratified_sample(manifest, seed=chosen.train.seed, most=_checked_size(sample, manifest))
    measured, failed = _measure_all(chosen, names, manifest, samples, on_event)
    if not measured:
        raise _none_left(failed)
    units = units_of(samples)
    pairs = {(unit, label) for unit, drawn in zip(units, samples, strict=True) for label in drawn.target.classes}
    counts = Counter(label for _, label in pairs)
    rarest = min(counts[index] for index in range(len(manifest.classes)))
    targets = torch.from_numpy(target_array(samples))
    return Ranked(
        ranking.rank(measured, task=manifest.task, targets=targets, images_of_rarest=rarest),
        tuple(failed),
        num_images=len(samples),
        num_independent=len(set(units)),
        num_classes=len(manifest.classes),
        task=manifest.task,
    )


def _measure_all(
    recipe: Recipe, names: Sequence[str], manifest: Manifest, samples: Sequence[Sample], on_event: OnEvent
) -> tuple[list[Candidate], list[FailedCandidate]]:
    measured, failed = [], []
    for label, name in zip(labels(names), names, strict=True):
        try:
            candidate = measure_candidate(candidate_recipe(recipe, name), label, manifest, samples, on_event=on_event)
        except (DataError, Interrupted):
            raise
        except FinetuneError as error:
            hint = LOCAL_HINT if error.hint == NO_HUB_HINT else error.hint
            failed.append(FailedCandidate(label, error.message, hint))
            on_event(Event.warning(f"{label} is left out: {error.message}"))
        else:
            measured.append(candidate)
            on_event(Event.message(f"{label}: predicted {TASKS[manifest.task].score} {candidate.predicted.value:.3f}"))
    return measured, failed


def labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return short names for tables: of a folder its last part, of a timm name no tag, where that is unique."""

    def short(name: str) -> str:
        bare, size = _split_size(name)
        is_path = bare.startswith("local-dir:") or os.sep in bare
        stem = Path(bare.removeprefix("local-dir:")).name if is_path else bare.split(".")[0]
        return f"{stem}@{size}" if size else stem

    counts = Counter(map(short, names))
    return tuple(short(name) if counts[short(name)] == 1 else name for name in names)


def candidate_recipe(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a head-only pass over one candidate: a timm name or a folder, with or without @PIXELS.

    Raises:
        BackboneError: it is a file.
        RecipeError: an image size that none can have.
    """
    bare, size = _split_size(name)
    path = Path(bare.removeprefix("local-dir:")).expanduser()
    is_path = bare.startswith("local-dir:") or is_folder(path) or (os.sep in bare and not bare.startswith("hf-hub:"))
    if is_path and path.is_file():
        hint = "A candidate is a timm name, or a folder with config.json and model.safetensors."
        raise BackboneError(f"{path} is a file", hint=hint)
    changes: dict[str, Any] = {
        "strategy.name": "linear-probe",
        "strategy.top_k": "auto",
        "strategy.probe_at": "auto",
        "backbone.name": "auto" if is_path else bare,
        "backbone.weights": str(path) if is_path else "none",
    }
    return recipes.update(recipe, changes | ({"backbone.image_size": size} if size else {}))


@guarded()
def measure_candidate(
    recipe: Recipe, name: str, manifest: Manifest, samples: Sequence[Sample], *, on_event: OnEvent = ignore
) -> Candidate:
    """Load one candidate, run it over the sample (or take what is kept of it), and score its features.

    Raises:
        BackboneError, ResourceError, TrainingError: it cannot be used.
    """
    of, compute = architecture_of(recipe), Compute.of(recipe.train)
    backbone = at_range(load_backbone(recipe, of, compute, num_classes=len(manifest.classes)), manifest)
    size = backbone.preprocessing.image_size
    inputs = Inputs(recipe, manifest, backbone, None, compute)
    features, targets = features_of(inputs, samples, on_event=_named(on_event, name))
    units = units_of(samples)
    first = first_of_units(units)  # LogME and H-score take images for independent
    probing, has_one_class = PROBES[manifest.task], manifest.task == "classify"
    judged = probing.judged(features, targets, units)
    evidence = logme if has_one_class else logme_of_values
    return Candidate(
        name=name,
        image_size=size,
        num_parameters=sum(group.num_parameters for group in backbone.groups if not group.is_head),
        gmacs=multiplications(backbone.model, image_size=size) / 1e9,
        predicted=probing.interval(judged, targets, units),
        judged=judged,
        knn_top1=knn_top1(features, targets, units=units) if has_one_class else None,
        logme=evidence(features[first], targets[first]),
        h_score=h_score(features[first], targets[first]) if has_one_class else None,
        standing=standing(of.name) if of.weights is None and of.pretrained else None,
        units=tuple(units),
    )


def _checked_size(sample: int, manifest: Manifest) -> int:
    needed = 2 * len(manifest.classes) if manifest.task != "regress" else FEWEST_PROBED
    if sample < needed:
        raise RecipeError(
            f"--sample {sample}: {_what(manifest)} {needed} images or more",
            hint=f"Each image is judged by the others{' of its class' * (manifest.task != 'regress')}.",
        )
    return sample


def _what(manifest: Manifest) -> str:
    return "a number needs" if manifest.task == "regress" else f"{len(manifest.classes)} classes need"


def _split_size(name: str) -> tuple[str, int | None]:
    bare, at, size = name.rpartition("@")
    return (bare, int(size)) if at and size.isdecimal() else (name, None)


def _named(on_event: OnEvent, name: str) -> OnEvent:
    """Pass on progress and warnings under a candidate's name; how its phase computes is of no interest here."""

    def told(event: Event) -> None:
        if event.kind == "progress":
            on_event(replace(event, facts=event.facts | {"task": f"{name}: {event.facts['task']}"}))
        elif event.kind == "warning":
            on_event(replace(event, facts={"text": f"{name}: {event.facts['text']}"}))

    return told


def _none_left(failed: Sequence[FailedCandidate]) -> BackboneError:
    if len(failed) == 1:
        return BackboneError(failed[0].reason, hint=failed[0].hint)
    reasons = "\n".join(f"  - {failure.name}: {failure.reason}" for failure in failed)
    hint = next((failure.hint for failure in failed if failure.hint), LOCAL_HINT)
    return BackboneError(f"none of the {len(failed)} candidates can be used:\n{reasons}", hint=hint)
