"""A run before its first step; or, if the verdict is uncertain and there is time, a race of both choices."""

from __future__ import annotations

import time
from dataclasses import replace

from finetune import ranks
from finetune import recipe as recipes
from finetune.prepare.inputs import computing_as
from finetune.prepare.prepared import Prepared, prepare
from finetune.prepare.time_limit import limit_of, predicted
from finetune.prepare.work import work_of
from finetune.runs.race import PreparedRace, field_of
from finetune.runs.single import PreparedRun, settled_run
from finetune.settings import Recipe
from finetune.strategy.budget import told
from finetune.strategy.race import RacePlan, both_of
from finetune.types import Event, Manifest, OnEvent, ignore


def prepare_run(
    recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore
) -> PreparedRun | PreparedRace:
    """Return the run that a recipe asks for, or a race of two; `manifest` is its data where it was read before.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    began = time.monotonic()
    with computing_as(recipe, on_event=on_event):
        prepared = prepare(recipe, manifest=manifest, on_event=on_event)
        race = _race_of_both(recipe, prepared, on_event)
        return race or settled_run(prepared, recipe, began=began, on_event=on_event)


def _race_of_both(recipe: Recipe, own: Prepared, on_event: OnEvent) -> PreparedRace | None:
    """Return the race of both choices of an uncertain verdict, each to its end; None if there is no time for both."""
    if recipe.train.time == "none" or own.verdict is None or own.verdict.rival is None or ranks.is_together():
        return None
    assert own.evidence is not None  # as it has a verdict
    first, rival = both_of(own.verdict, own.evidence)
    field = {label: _without_time(run) for label, run in field_of(recipe, own).items() if label in (first, rival)}
    works = {label: work for label, run in field.items() if (work := work_of(run)) is not None}
    options = [predicted(made, num_images=len(own.manifest.samples)) for made in field.values()]
    seconds = sum(option.seconds(option.epochs) for option in options) * (2 if recipe.train.refit else 1)
    if len(works) < 2 or seconds > limit_of(recipe, gone=0.0):
        return None
    note = (
        f"{recipe.train.time} holds both, {first} and {rival}, with about {told(seconds)} of computing: both are tried"
    )
    on_event(Event.message(f"time: {note}"))
    verdict = replace(own.verdict, reason=f"{own.verdict.reason}; {note}")
    field = {label: replace(run, verdict=verdict, notes=(*run.notes, note)) for label, run in field.items()}
    last = max(len(work.epochs) for work in works.values())
    whole = tuple(label for label, work in works.items() if work.is_cheap)
    return PreparedRace(recipe, field, works, RacePlan(tuple(field), (last,), whole))


def _without_time(run: Prepared) -> Prepared:
    """Return a run without its time limit: the epochs are settled, and a recipe that repeats it needs no limit."""
    return replace(run, recipe=recipes.update(run.recipe, {"train.time": "none"}))
