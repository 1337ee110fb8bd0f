"""Which backbone is nearest to some data: one frozen pass of each over a sample of train, then scores.

What a backbone yields for an image is kept in the feature cache, where a later run that trains its
head alone finds it too.

Letters: N images, D features.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune import inline
from finetune import recipe as recipes
from finetune.backbone.automatic import NO_HUB_HINT
from finetune.backbone.cost import multiplications
from finetune.backbone.folder import is_folder
from finetune.backbone.packaged import INSTALL
from finetune.backbone.shortlist import standing
from finetune.data.split import first_of_units, units_of
from finetune.data.targets import target_array
from finetune.device import Compute
from finetune.errors import BackboneError, DataError, FinetuneError, Interrupted
from finetune.features.scores import h_score, knn_top1, logme, logme_of_values
from finetune.prepare.head_features import features_of
from finetune.prepare.inputs import Inputs, architecture_of, at_range, load_backbone
from finetune.settings import Recipe
from finetune.strategy import rank as ranking
from finetune.strategy.evidence import stratified_sample
from finetune.strategy.probing import PROBES
from finetune.strategy.rank import Candidate, Ranking
from finetune.tasks import TASKS, Task
from finetune.train.guard import guarded
from finetune.types import FEWEST_PROBED, Event, Manifest, OnEvent, Sample, ignore, to_json

LOCAL_HINT = (
    "Give folders of weights on this machine: `finetune backbones rank --data DIR weights/*`; or add some by"
    f" the package index: `{INSTALL}`; or copy the hub's cache from another machine (HF_HOME names it)."
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

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        rows = ([one.name, one.image_size[0], one.gmacs, one.predicted] for one in self.ranking.candidates)
        told = inline.html_lines(f"take {self.ranking.reason}", *self.ranking.remarks)
        return inline.html_table(["backbone", "pixels", "GMACs", f"predicted {self.metric}"], rows) + told

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as one JSON document; without the answers for every image."""
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


def fewest_ranked(manifest: Manifest) -> int:
    """Return the fewest train images that candidates can be ranked on."""
    return 2 * len(manifest.classes) if manifest.task != "regress" else FEWEST_PROBED


def ranked(
    recipe: Recipe,
    called: Mapping[str, str],
    *,
    manifest: Manifest,
    most: int,
    on_event: OnEvent = ignore,
) -> Ranked:
    """Rank candidates, by the names they go by, on a stratified sample of at most `most` train images.

    Raises:
        BackboneError: none of them can be used. DataError, RecipeError: what cannot be used, and the way out.
    """
    samples = stratified_sample(manifest, seed=recipe.train.seed, most=most)
    measured, failed = _measure_all(recipe, called, manifest, samples, on_event)
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
    recipe: Recipe, called: Mapping[str, str], manifest: Manifest, samples: Sequence[Sample], on_event: OnEvent
) -> tuple[list[Candidate], list[FailedCandidate]]:
    measured, failed = [], []
    for label, name in called.items():
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


def labelled(names: Sequence[str]) -> dict[str, str]:
    """Return candidates by short names for tables: a folder's last part, a timm name without its tag, if unique."""

    def short(name: str) -> str:
        bare, size = _split_size(name)
        is_path = bare.startswith("local-dir:") or os.sep in bare
        stem = Path(bare.removeprefix("local-dir:")).name if is_path else bare.split(".")[0]
        return stem if size is None else f"{stem}@{size}"

    names = tuple(dict.fromkeys(names))
    counts = Counter(map(short, names))
    return {short(name) if counts[short(name)] == 1 else name: name for name in names}


def candidate_recipe(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a head-only pass over one candidate; see `of_backbone`."""
    own = {"strategy.name": "linear-probe", "strategy.top_k": "auto", "strategy.probe_at": "auto"}
    return of_backbone(recipes.update(recipe, own), name)


def of_backbone(recipe: Recipe, name: str) -> Recipe:
    """Return a recipe with another backbone: a timm name or a folder of weights, with or without @PIXELS.

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
        "backbone.among": "none",
        "backbone.name": "auto" if is_path else bare,
        "backbone.weights": str(path) if is_path else "none",
    }
    return recipes.update(recipe, changes | ({} if size is None else {"backbone.image_size": size}))


def whole_name(name: str) -> str:
    """Return a candidate so that it is found from any folder: a folder's whole path, else the name unchanged."""
    bare, size = _split_size(name)
    path = Path(bare).expanduser()
    at = "" if size is None else f"@{size}"
    return f"{path.resolve()}{at}" if is_folder(path) else name


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
    features, targets = features_of(inputs, samples, on_event=under_name(on_event, name))
    units = units_of(samples)
    first = first_of_units(units)  # LogME and H-score assume that images are independent
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


def _split_size(name: str) -> tuple[str, int | None]:
    bare, at, size = name.rpartition("@")
    return (bare, int(size)) if at and size.isdecimal() else (name, None)


def under_name(on_event: OnEvent, name: str, *, kinds: Container[str] = ("progress", "warning")) -> OnEvent:
    """Pass on events of some kinds under a candidate's name; how its phase is computed does not matter here."""

    def told(event: Event) -> None:
        key = "task" if event.kind == "progress" else "text"
        if event.kind in kinds:
            text = event.facts[key].removeprefix(f"{name}: ")
            on_event(replace(event, facts=event.facts | {key: f"{name}: {text}"}))

    return told


def _none_left(failed: Sequence[FailedCandidate]) -> BackboneError:
    if len(failed) == 1:
        return BackboneError(failed[0].reason, hint=failed[0].hint)
    reasons = "\n".join(f"  - {failure.name}: {failure.reason}" for failure in failed)
    hint = next((failure.hint for failure in failed if failure.hint), LOCAL_HINT)
    return BackboneError(f"none of the {len(failed)} candidates can be used:\n{reasons}", hint=hint)
