"""A run before its first step: data, backbone, evidence, verdict, phases, resolved recipe."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.backbone.load import Backbone
from finetune.backbone.weights import refuse_random
from finetune.data.pixels import PixelCache
from finetune.device import resolve_device
from finetune.prepare.evidence import Tapped, measure_evidence
from finetune.prepare.inputs import architecture_of, at_range, data_notes, list_data, load_backbone, pixels_of, read_for
from finetune.prepare.resolve import plan_phases, remarks, resolve, with_head
from finetune.settings import Recipe
from finetune.strategy.matrix import decide
from finetune.types import Event, Evidence, Manifest, OnEvent, Phase, Verdict, ignore


@dataclass(slots=True)
class Prepared:
    """A run before its first step: nothing is left to decide."""

    recipe: Recipe
    manifest: Manifest
    backbone: Backbone
    phases: tuple[Phase, ...]
    evidence: Evidence | None
    verdict: Verdict | None
    pixels: PixelCache | None = None
    tapped: Tapped | None = None  # what the evidence has computed already
    notes: tuple[str, ...] = ()


def prepare(recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore) -> Prepared:
    """Read the data, load the backbone, decide what "auto" leaves open, and settle every number.

    `manifest` is the data where it was read before.

    Raises:
        DataError, BackboneError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    of = architecture_of(recipe)
    resolve_device(recipe.train.device)
    listed = manifest or list_data(recipe)
    backbone = load_backbone(recipe, of, num_classes=len(listed.classes))
    if manifest is None:
        backbone, manifest, pixels = read_for(recipe, listed, backbone, on_event=on_event)
    else:
        backbone = at_range(backbone, manifest)
        pixels = pixels_of(recipe, manifest, backbone)
    if backbone.weights is not None:
        on_event(Event("message", {"text": f"{of.label}: {backbone.weights.sentence()}"}))
    evidence = verdict = tapped = None
    if recipe.strategy.name == "auto":
        evidence, tapped = measure_evidence(recipe, manifest, backbone, pixels, on_event=on_event)
        verdict = decide(evidence, assume=recipe.strategy.assume.split(","))
        on_event(Event("message", {"text": verdict.line}))
        if not of.pretrained:
            text = "the backbone has random weights, of which the evidence tells little: --strategy scratch trains it"
            on_event(Event("warning", {"text": text}))
    recipe = resolve(recipe, manifest, backbone, verdict)
    planned = plan_phases(recipe, backbone)
    refuse_random(backbone.weights, backbone.groups, trained=planned[0].plan.trained)
    for remark in remarks(recipe, backbone):
        on_event(Event("warning", {"text": remark}))
    model, notes = with_head(recipe, backbone), data_notes(manifest)
    return Prepared(recipe, manifest, model, planned, evidence, verdict, pixels, tapped, notes)
