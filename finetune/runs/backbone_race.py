"""Which of several backbones: they are ranked on frozen features, and the likeliest race with their own strategies.

Source: Renggli et al. 2022, Which model to transfer?, arXiv:2010.06402: train both the first on the data and the
strongest in general, and keep the better one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from finetune.backbone.cost import multiplications
from finetune.backbone.shortlist import on_this_machine
from finetune.data import checks
from finetune.errors import BackboneError, FinetuneError, TrainingError
from finetune.prepare.batch_size import skeleton_or_none, with_micro_batch
from finetune.prepare.candidates import (
    FailedCandidate,
    Ranked,
    candidate_recipe,
    fewest_ranked,
    labelled,
    of_backbone,
    ranked,
    under_name,
)
from finetune.prepare.costs import speed_of
from finetune.prepare.inputs import computing_as, list_data, read_data
from finetune.prepare.prepared import Prepared, prepare
from finetune.prepare.time_limit import limit_of, predicted
from finetune.prepare.work import work_of
from finetune.runs.measured_lr import with_measured_lr
from finetune.runs.race import PreparedRace, leaving_room, those_in_time
from finetune.settings import Recipe
from finetune.strategy.budget import Option
from finetune.strategy.race import CandidateWork, RacePlan, images_to_rank, plan_backbone_race
from finetune.strategy.strategies import is_pretrained
from finetune.types import MOST_RANKED, Event, Manifest, OnEvent, ignore

FEWEST_RANKED = 64  # images of train, where there are as many
UNKNOWN = "its operations cannot be counted"


def backbones_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the backbones from which a recipe lets the data choose; none if it does not."""
    backbone, strategy = recipe.backbone, recipe.strategy.name
    if backbone.among == "here":
        return on_this_machine()
    if backbone.among not in ("auto", "none"):
        return tuple(name.strip() for name in backbone.among.split(","))
    is_open = backbone.name == "auto" and backbone.weights == "none" and recipe.train.time != "none"
    if backbone.among == "none" or not (is_open and backbone.pretrained and is_pretrained(strategy)):
        return ()
    here = on_this_machine() if strategy != "race" else ()
    return here if len(here) > 1 else ()


def prepare_backbones(recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore) -> PreparedRace:
    """Return the race of the best backbones of a recipe on its data, the favourite first.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`; for a single backbone only if all of them fail.
    """
    began = time.monotonic()
    with computing_as(recipe, on_event=on_event) as compute:
        manifest = manifest or read_data(recipe, list_data(recipe), on_event=on_event)
        called = _in_folders(labelled(backbones_of(recipe)))
        found = _ranked(recipe, called, manifest, compute.device, on_event)
        on_event(Event.message(f"backbones: {found.ranking.reason}"))
        field, failed = _prepared(recipe, called, found.ranking.starters, manifest, on_event)
        gone = time.monotonic() - began
        asked = {label: of_backbone(recipe, called[label]) for label in field}
        in_time, late = _in_time_each(field, asked, gone, on_event)
        works, plan = _planned(in_time, recipe, gone)
    left = {failure.name: failure.reason for failure in found.failed}
    behind = {one.name: "others rank above it" for one in found.ranking.candidates if one.name not in field}
    plan = replace(plan, left_out={**left, **behind, **failed, **late, **plan.left_out})
    return PreparedRace(recipe, in_time, works, plan, ranking=found)


def _in_folders(called: Mapping[str, str]) -> dict[str, str]:
    """Return candidates by labels that may be names of folders."""
    found: dict[str, str] = {}
    for label, name in called.items():
        plain = re.sub(r"[^\w.@+-]+", "-", label).strip("-.") or "backbone"
        twice = sum(other == plain or other.startswith(f"{plain}~") for other in found)
        found[f"{plain}~{twice + 1}" if twice else plain] = name
    return found


def _ranked(
    recipe: Recipe, called: Mapping[str, str], manifest: Manifest, device: torch.device, on_event: OnEvent
) -> Ranked:
    """Rank the candidates on as many images as the time allows."""
    needed = fewest_ranked(manifest)
    most, slow = max(MOST_RANKED, needed), dict[str, str]()
    if recipe.train.time != "none":
        seconds = {label: _seconds_an_image(recipe, name, manifest, device) for label, name in called.items()}
        known = {label: taken for label, taken in seconds.items() if taken is not None}
        fewest = min(max(FEWEST_RANKED, needed), len(manifest.split("train")))
        most, slow = images_to_rank(known, limit_of(recipe, gone=0.0), fewest=fewest, most=most)
    for label, reason in slow.items():
        on_event(Event.warning(f"{label} is left out: {reason}"))
    kept = {label: name for label, name in called.items() if label not in slow}
    found = ranked(recipe, kept, manifest=manifest, most=most, on_event=on_event)
    left = (FailedCandidate(label, reason, "Give more --time.") for label, reason in slow.items())
    return replace(found, failed=(*left, *found.failed))


def _seconds_an_image(recipe: Recipe, name: str, manifest: Manifest, device: torch.device) -> float | None:
    """Return the seconds of a forward pass of one image on this machine; None if that is unknown."""
    own = candidate_recipe(recipe, name)
    skeleton = skeleton_or_none(own, num_classes=len(manifest.classes))
    speed = None if skeleton is None else speed_of(own, skeleton, device)
    return None if speed is None else speed.forward


def _prepared(
    recipe: Recipe, called: Mapping[str, str], starters: tuple[str, ...], manifest: Manifest, on_event: OnEvent
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Return those that start, prepared each with its own strategy, and why others are not.

    What was reported for one (mostly about the data) is not reported again for the next.

    Raises:
        FinetuneError: none can be prepared; the first reason.
    """
    field: dict[str, Prepared] = {}
    failed: dict[str, FinetuneError] = {}
    told: set[str] = set()
    for label in starters:
        named = _unlike(told, under_name(on_event, label, kinds=("progress", "warning", "message")))
        try:
            field[label] = prepare(of_backbone(recipe, called[label]), manifest=manifest, on_event=named)
        except (BackboneError, TrainingError) as error:
            failed[label] = error
            on_event(Event.warning(f"{label} is left out: {error.message}"))
        else:
            checks.fill(manifest, field[label].pixels, on_event=named)
    if not field:
        raise next(iter(failed.values()))
    return field, {label: error.message for label, error in failed.items()}


def _unlike(told: set[str], on_event: OnEvent) -> OnEvent:
    """Pass on events, except texts that were reported before."""

    def passed(event: Event) -> None:
        text = event.facts.get("text")
        if text is None or text not in told:
            on_event(event)
        told.update([text] if text else [])

    return passed


def _in_time_each(
    field: Mapping[str, Prepared], asked: Mapping[str, Recipe], gone: float, on_event: OnEvent
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Return the candidates that leave the race its share of the remaining time, and why others do not.

    Raises:
        RecipeError: none does.
    """

    def fit(label: str, candidate: Prepared) -> Prepared:
        named = under_name(on_event, label, kinds=("warning", "message"))
        may_fall = asked[label].strategy.name == "auto"
        fitting = leaving_room(candidate, asked[label], may_fall=may_fall, gone=gone, on_event=named)
        return with_measured_lr(with_micro_batch(fitting, on_event=named), asked[label], on_event=named)

    in_time, late = those_in_time(field, fit)
    if not in_time:
        raise next(iter(late.values()))
    return in_time, {label: error.message for label, error in late.items()}


def _planned(field: Mapping[str, Prepared], recipe: Recipe, gone: float) -> tuple[dict[str, CandidateWork], RacePlan]:
    """Return the work of every candidate for which it is known, and the resulting race."""
    favourite, works = next(iter(field)), dict[str, CandidateWork]()
    for label, candidate in field.items():
        if (work := work_of(candidate)) is not None:
            model, size = candidate.backbone.model, candidate.backbone.preprocessing.image_size
            works[label] = replace(work, gmacs=multiplications(model, image_size=size) / 1e9)
    unknown = dict.fromkeys((label for label in field if label not in works), UNKNOWN)
    if favourite not in works:
        return works, RacePlan((favourite,), (), (), dict.fromkeys((*field,)[1:], f"{favourite}: {UNKNOWN}"))
    options, limit = dict[str, Option](), None
    if recipe.train.time != "none":
        limit = limit_of(recipe, gone=gone)
        options = {label: predicted(field[label], num_images=work.num_images) for label, work in works.items()}
    plan = plan_backbone_race(works, options, limit)
    return works, replace(plan, left_out={**unknown, **plan.left_out})
