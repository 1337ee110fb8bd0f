"""A run before its first step: data, backbone, evidence, verdict, phases, resolved recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.backbone.weights import refuse_random
from finetune.errors import RecipeError
from finetune.prepare.evidence import Tapped, measure_evidence
from finetune.prepare.inputs import Inputs, architecture_of, data_notes, read_inputs
from finetune.prepare.resolve import balancing, flipping, plan_phases, remarks, resolve, with_head
from finetune.settings import Recipe
from finetune.strategy.matrix import decide
from finetune.tasks import Scale
from finetune.train.number_head import check_number_head, scale_of
from finetune.types import Event, Evidence, Manifest, OnEvent, Phase, Verdict, ignore
from finetune.wording import listed


@dataclass(slots=True)
class Prepared(Inputs):
    """A run before its first step: nothing is left to decide."""

    phases: tuple[Phase, ...]
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    tapped: Tapped | None = None  # what the evidence has already computed
    notes: tuple[str, ...] = ()
    scale: Scale | None = None  # in which training sees the numbers that images have


def prepare(recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore) -> Prepared:
    """Read the data, load the backbone, decide what is "auto", and settle every number.

    `manifest` is the data where it was read before.

    Raises:
        DataError, BackboneError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    of = architecture_of(recipe)
    inputs = read_inputs(recipe, of=of, manifest=manifest, on_event=on_event)
    backbone, scale = inputs.backbone, scale_of(inputs.manifest)
    if backbone.weights is not None:
        on_event(Event.message(f"{of.label}: {backbone.weights.sentence()}"))
    evidence = verdict = tapped = None
    if recipe.strategy.name == "auto":
        evidence, tapped = measure_evidence(inputs, on_event=on_event)
        verdict = decide(evidence, assume=recipe.strategy.assume.split(","))
        on_event(Event.message(verdict.line))
        if not of.pretrained:
            text = "the backbone has random weights, so the evidence says little: --strategy scratch trains it"
            on_event(Event.warning(text))
    planned = planned_run(inputs, resolve(inputs, verdict))
    refuse_random(backbone.weights, backbone.groups, trained=planned.phases[0].plan.trained)
    for line in _known(planned):
        on_event(Event.message(line))
    for remark in (*remarks(planned.recipe, backbone), *flipping(planned.recipe, planned.manifest)):
        on_event(Event.warning(remark))
    balanced = tuple(balancing(planned.recipe, planned.manifest))
    for line in balanced:
        on_event(Event.message(line))
    return replace(
        planned,
        evidence=evidence,
        verdict=verdict,
        tapped=tapped,
        notes=(*data_notes(planned.manifest), *balanced),
        scale=scale,
    )


def _known(planned: Prepared) -> Iterator[str]:
    """Report which classes keep what an earlier classifier learned about them.

    Raises:
        RecipeError: it is to be re-initialised.
    """
    known, classes = planned.backbone.known, planned.manifest.classes
    if not known or planned.phases[0].solver == "lbfgs":
        return
    if planned.recipe.strategy.initialiser != "auto":
        raise RecipeError(
            f"strategy.initialiser would overwrite what {planned.recipe.backbone.weights} knows of {listed(known)}",
            hint="Leave it out; new classes start like timm's heads.",
        )
    new = [name for name in classes if name not in known]
    keep = "keeps its row" if len(known) == 1 else "keep their rows"
    yield f"head: {listed(known)} {keep}; new: {listed(new) or 'none'}"


def planned_run(inputs: Inputs, recipe: Recipe) -> Prepared:
    """Return the run that a resolved recipe asks for on some inputs, whose backbone has all its layer groups."""
    backbone = with_head(recipe, inputs.backbone)
    phases = plan_phases(recipe, inputs.backbone)
    planned = Prepared(recipe, inputs.manifest, backbone, inputs.pixels, inputs.compute, phases)
    if inputs.manifest.task == "regress":
        check_number_head(backbone.model, backbone.architecture.label)
    return planned
