"""The learning rate of a run by a range test: measured once, before the first step, and pinned in its recipe."""

from __future__ import annotations

from dataclasses import replace

from finetune import recipe as recipes
from finetune.optim.range_curve import RangeCurve
from finetune.prepare.batches import Feeder
from finetune.prepare.prepared import Prepared
from finetune.runs.training import fit_of, fresh_of
from finetune.settings import RANGE_TEST, Recipe
from finetune.train.range_test import HIGHEST, LOWEST, STEPS, NoKeeper, range_test
from finetune.types import NEVER, Event, OnEvent, ignore


def curve_for(
    prepared: Prepared, *, low: float = LOWEST, high: float = HIGHEST, steps: int = STEPS, on_event: OnEvent = ignore
) -> RangeCurve:
    """Return the range test of a run before its first step; the run is left as it was.

    Raises:
        RecipeError: its head is solved, without steps. ResourceError: memory ran out.
    """
    feeder = Feeder(prepared, on_event=_progress_of(on_event))
    fit = fit_of(prepared, feeder, NoKeeper(), NEVER)
    return range_test(
        replace(fit, on_event=on_event), prepared.phases, fresh=fresh_of(prepared), low=low, high=high, steps=steps
    )


def with_measured_lr(prepared: Prepared, asked: Recipe, *, on_event: OnEvent = ignore) -> Prepared:
    """Return a run at the rate that a range test suggests, if its recipe asks for one; else unchanged.

    If the head is solved there is no rate to measure, and if the loss never falls the strategy's own rate stays; both
    are reported.
    """
    if asked.optim.lr != RANGE_TEST:
        return prepared
    own = float(prepared.recipe.optim.lr)
    if all(phase.solver == "lbfgs" for phase in prepared.phases):
        on_event(Event.message("no learning rate is measured: the head is solved, not trained by steps"))
        return prepared
    curve = curve_for(prepared, on_event=on_event)
    if curve.suggested is None:
        text = f"the range test shows no rate at which the loss falls: the strategy's own stays, {own:g}"
        on_event(Event.warning(text))
        return replace(prepared, notes=(*prepared.notes, text))
    lr = float(f"{curve.suggested:.3g}")
    text = f"learning rate {lr:g}, by a range test of {len(curve.rates)} steps (the strategy's own is {own:g})"
    on_event(Event.message(text))
    phases = tuple(replace(phase, lr=lr) if phase.solver == "gradient" else phase for phase in prepared.phases)
    recipe = recipes.update(prepared.recipe, {"optim.lr": lr})
    return replace(prepared, recipe=recipe, phases=phases, notes=(*prepared.notes, text))


def _progress_of(on_event: OnEvent) -> OnEvent:
    """Return a listener that passes on progress, and nothing that the run will report again."""

    def watch(event: Event) -> None:
        if event.kind == "progress":
            on_event(event)

    return watch
