"""What a run would do, without training: groups, phases, layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from finetune import inline
from finetune.arguments import Settings, typed
from finetune.backbone.layers import LayerTable, layer_table
from finetune.backbone.load import Backbone
from finetune.device import Compute
from finetune.errors import BackboneError, check_count
from finetune.prepare.asked import check_decidable, options, recipe_of
from finetune.prepare.batch_size import skeleton_or_none
from finetune.prepare.costs import Cost, costs
from finetune.prepare.device_memory import DeviceMemory, device_memory
from finetune.prepare.inputs import (
    Inputs,
    computing_as,
    data_notes,
    list_data,
    skeleton_of,
    with_backbone,
    with_task,
)
from finetune.prepare.prepared import Prepared, planned_run, prepare
from finetune.prepare.resolve import remarks, resolve_numbers, wanted_batch
from finetune.prepare.time_limit import within_time
from finetune.runs import race as racing
from finetune.runs.backbone_race import backbones_of, prepare_backbones
from finetune.settings import Recipe
from finetune.strategy.strategies import why_usual_level
from finetune.tasks import Task
from finetune.train.guard import guarded
from finetune.types import Event, Evidence, FreezePlan, LayerGroup, Manifest, OnEvent, Phase, Verdict, ignore, to_json

USUAL_CLASSES = 1000  # of ImageNet, if neither the data nor the weights have classes
USUAL_IMAGES = 1000  # that sizes and times are for, if there is no data


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: on which layer groups, in which phases, and why."""

    backbone: str
    image_size: tuple[int, int]
    num_classes: int
    strategy: str
    groups: tuple[LayerGroup, ...]
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    layers: LayerTable | None = None
    num_images: int = 0
    costs: tuple[Cost, ...] = ()
    task: Task = "classify"
    memory: tuple[DeviceMemory, ...] = ()

    @property
    def num_parameters(self) -> int:
        return sum(group.num_parameters for group in self.groups)

    def num_trainable(self, plan: FreezePlan) -> int:
        """Return the number of parameters that a phase trains."""
        return sum(group.num_trained(plan[group.name]) for group in self.groups)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        verdict = [self.verdict.line] if self.verdict else []
        told = inline.html_lines(f"{self.strategy} on {self.backbone}", *verdict, *self.notes)
        rows = (
            [group.name, f"{group.num_parameters:,}", *(phase.plan[group.name].trains for phase in self.phases)]
            for group in self.groups
        )
        return told + inline.html_table(["layer group", "parameters", *(phase.name for phase in self.phases)], rows)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as one JSON document."""
        return {
            "backbone": self.backbone,
            "image_size": list(self.image_size),
            "num_classes": self.num_classes,
            "task": self.task,
            "strategy": self.strategy,
            "num_parameters": self.num_parameters,
            "notes": list(self.notes),
            "groups": [{"name": g.name, "num_parameters": g.num_parameters} for g in self.groups],
            "phases": [
                {
                    "name": phase.name,
                    "epochs": phase.epochs,
                    "solver": phase.solver,
                    "num_trainable": self.num_trainable(phase.plan),
                    "groups": [
                        {**to_json(item), "lr": phase.lr * item.lr_scale if phase.solver == "gradient" else None}
                        for item in phase.plan.groups
                    ],
                }
                for phase in self.phases
            ],
            "evidence": to_json(self.evidence) if self.evidence else None,
            "verdict": to_json(self.verdict) if self.verdict else None,
            "num_images": self.num_images,
            "costs": [to_json(cost) for cost in self.costs],
            "layers": to_json(self.layers) if self.layers else None,
            "memory": [{**to_json(held), "total": held.total} for held in self.memory],
        }


@guarded()
@typed
def plan(
    data: str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    layers: bool = False,
    images: int | None = None,
    memory: bool | int = False,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Plan:
    """Return what `run` with the same arguments would do, and what it would take, without training.

    Needs neither data nor weights, unless the strategy is auto, which measures both; without data, auto
    only shows the `layers`. Sizes and times are for `images` images: by default those of the data, or
    1,000. With `memory` it has what a GPU would hold, counted without one; given as a number of bytes, also
    how many images fit at once.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    for argument, count in (("images", images), ("memory", memory)):
        if count is not None and not isinstance(count, bool):
            check_count(argument, count)
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    if not backbones_of(chosen):
        chosen = with_backbone(chosen, on_event=on_event)
    with computing_as(chosen, on_event=on_event):
        return _plan(chosen, layers=layers, images=images, memory=memory, on_event=on_event)


def _plan(chosen: Recipe, *, layers: bool, images: int | None, memory: bool | int, on_event: OnEvent) -> Plan:
    name = chosen.strategy.name
    told = [text for text in [options(chosen)] if text]
    is_among = bool(backbones_of(chosen))
    if name in ("auto", "race") and not chosen.data.path and layers:
        return _layers_alone(chosen)
    if is_among:
        found = prepare_backbones(chosen, on_event=on_event)
        first = next(iter(found.field))
        told.append(f"{racing.told(found.plan)}; shown is {first}")
        prepared = found.own
    elif name in ("auto", "race"):
        check_decidable(chosen)
        prepared = _prepared(racing.as_auto(chosen), on_event)
        if name == "race":
            _, race = racing.planned(racing.field_of(chosen, prepared))
            told.append(f"{racing.told(race)}; shown is {prepared.recipe.strategy.name}")
    else:
        prepared = _prepared_on_paper(chosen)
    usual = [why_usual_level(prepared.recipe.strategy.name)] if chosen.augment.level == "auto" else []
    if chosen.loss.label_smoothing == "auto" and (smoothing := prepared.recipe.loss.smoothing):
        usual.append(f"loss.label_smoothing auto: {smoothing}, which was a point better on average")
    num_images = images or len(prepared.manifest.samples) or USUAL_IMAGES
    if not is_among:
        prepared = within_time(prepared, chosen, may_fall=name == "auto", num_images=num_images, on_event=on_event)
    skeleton = skeleton_or_none(prepared.recipe, num_classes=len(prepared.manifest.classes))
    return Plan(
        backbone=prepared.backbone.architecture.name,
        image_size=prepared.backbone.preprocessing.image_size,
        num_classes=len(prepared.manifest.classes),
        task=prepared.manifest.task,
        strategy=prepared.recipe.strategy.name,
        groups=prepared.backbone.groups,
        phases=prepared.phases,
        notes=(*told, *prepared.notes, *remarks(prepared.recipe, prepared.backbone), *usual),
        evidence=prepared.evidence,
        verdict=prepared.verdict,
        num_images=num_images,
        costs=costs(prepared, skeleton, num_images=num_images) if skeleton else (),
        memory=_memory(prepared, skeleton, num_images, memory) if memory else (),
        layers=layer_table(prepared.backbone.model, image_size=prepared.backbone.preprocessing.image_size)
        if layers
        else None,
    )


def _memory(
    prepared: Prepared, skeleton: Backbone | None, num_images: int, memory: bool | int
) -> tuple[DeviceMemory, ...]:
    """Return what a GPU would hold in each phase.

    Raises:
        BackboneError: it cannot be counted for this network.
    """
    train = prepared.recipe.train
    asked = next((size for size in (train.micro_batch, train.batch_size) if size != "auto"), wanted_batch(num_images))
    within = None if memory is True else memory
    try:
        if skeleton is not None:
            return tuple(device_memory(prepared, skeleton, batch=int(asked), within=within))
    except (NotImplementedError, RuntimeError):
        pass
    name = prepared.backbone.architecture.label
    raise BackboneError(
        f"{name} computes with the values of its tensors: its memory cannot be predicted",
        hint="A run on a GPU finds out by trial how many images fit.",
    )


def _prepared(recipe: Recipe, on_event: OnEvent) -> Prepared:
    """Prepare a run; what the plan itself shows (its notes, the verdict) is not reported as well."""
    held: list[Event] = []

    def hold(event: Event) -> None:
        if event.kind in ("warning", "message"):
            held.append(event)
        else:
            on_event(event)

    notes: tuple[str, ...] = ()
    try:
        prepared = prepare(recipe, on_event=hold)
        verdict = () if prepared.verdict is None else (prepared.verdict.line,)
        notes = (*prepared.notes, *remarks(prepared.recipe, prepared.backbone), *verdict)
        return prepared
    finally:
        for event in held:
            if event.facts["text"] not in notes:
                on_event(event)


def _layers_alone(recipe: Recipe) -> Plan:
    skeleton = skeleton_of(recipe, num_classes=None)
    size, name = skeleton.preprocessing.image_size, recipe.strategy.name
    return Plan(
        backbone=skeleton.architecture.name,
        image_size=size,
        num_classes=skeleton.model.num_classes,  # type: ignore[arg-type]
        strategy=name,
        groups=skeleton.groups,
        phases=(),
        notes=(f"strategy {name} decides from the data what to train: add --data DIR, or name a --strategy",),
        layers=layer_table(skeleton.model, image_size=size),
    )


def _num_train(recipe: Recipe, manifest: Manifest | None) -> int | None:
    """Return how many images will be trained on: those of the train split, or what val and test leave."""
    if manifest is None:
        return None
    named = len(manifest.split("train"))
    left = named or len(manifest.samples)
    has_val = bool(manifest.split("val"))
    return max(1, round(left * (1 - (0 if has_val else recipe.split.val) - (0 if named else recipe.split.test))))


def _prepared_on_paper(recipe: Recipe) -> Prepared:
    """Settle a recipe on a network without weights, and with only the names of the classes."""
    manifest = list_data(recipe) if recipe.data.path else None
    recipe = with_task(recipe, manifest) if manifest else recipe
    skeleton = skeleton_of(recipe, num_classes=len(manifest.classes) if manifest else None)
    if not skeleton.model.num_classes:  # weights without a classifier
        skeleton = skeleton_of(recipe, num_classes=USUAL_CLASSES)
    recipe = resolve_numbers(recipe, skeleton, None, num_train=_num_train(recipe, manifest))
    if manifest is None:
        num_classes: int = skeleton.model.num_classes  # type: ignore[assignment]
        manifest = Manifest("", tuple(map(str, range(num_classes))), ())
    inputs = Inputs(recipe, manifest, skeleton, None, Compute.of(recipe.train))
    return replace(planned_run(inputs, recipe), notes=data_notes(manifest))
