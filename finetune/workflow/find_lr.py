"""`find-lr`: which learning rate a run could take, from the loss of a step at each of rising rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from finetune import inline
from finetune import recipe as recipes
from finetune.arguments import Settings, typed
from finetune.data.places import check_outside
from finetune.errors import RecipeError, check_count
from finetune.optim.range_curve import FEWEST, RangeCurve
from finetune.prepare.asked import recipe_of
from finetune.prepare.batch_size import with_micro_batch
from finetune.prepare.inputs import computing_as, with_backbone
from finetune.prepare.prepared import prepare
from finetune.report import range_plot
from finetune.runs.measured_lr import curve_for
from finetune.settings import Recipe
from finetune.train.guard import IN_A_RUN, guarded
from finetune.train.range_test import HIGHEST, LOWEST, STEPS
from finetune.types import OnEvent, ignore, to_json
from finetune.whole import check_new_file


@dataclass(frozen=True, slots=True)
class RateSearch:
    """A range test of a run: its curve with the rates that it suggests, and the rate that `auto` would take."""

    strategy: str
    phase: str
    optimiser: str
    curve: RangeCurve
    usual: float
    plot: Path | None

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        rates = [("suggested", self.curve.suggested), ("the strategy's own", self.usual)]
        return inline.html_table(["", "learning rate"], rates)

    def to_json(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {**to_json(self), "suggested": self.curve.suggested, "plot": self.plot and str(self.plot)}


@guarded(IN_A_RUN)
@typed
def find_lr(
    data: str | Path | None = None,
    *,
    low: float = LOWEST,
    high: float = HIGHEST,
    steps: int = STEPS,
    plot: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> RateSearch:
    """Return the loss of a step at each of a number of rates, from lowest to highest, and the rate that they suggest.

        finetune.find_lr("imgs", strategy="head-only").curve.suggested

    Takes the first phase that is trained by steps, and leaves nothing behind but what a run would keep in the caches.
    `plot` names an SVG for the curve. `settings` are the flags of `finetune run`. Source: Smith 2017, arXiv:1506.01186.

    Raises:
        RecipeError: a strategy without steps, or rates that do not rise. DataError, BackboneError, ResourceError: what
            cannot be used, and the way out.
    """
    check_count("steps", steps)
    if steps < FEWEST or not 0 < low < high:
        raise RecipeError(f"{steps} steps from {low:g} to {high:g}: rates must rise, in {FEWEST} steps or more")
    if plot is not None:
        check_new_file(Path(plot), ".svg")
    asked = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    if plot is not None:
        check_outside(Path(plot), asked.data.path, flag="--plot")
    if asked.strategy.name == "race":
        raise RecipeError("a race has several strategies, each with a rate of its own", hint="Name one of them.")
    asked = with_backbone(recipes.update(asked, {"optim.lr": "auto"}), on_event=on_event)
    with computing_as(asked, on_event=on_event):
        prepared = with_micro_batch(prepare(asked, on_event=on_event), on_event=on_event)
        curve = curve_for(prepared, low=low, high=high, steps=steps, on_event=on_event)
    phase = next(phase for phase in prepared.phases if phase.solver == "gradient")
    name = prepared.recipe.strategy.name
    usual = float(prepared.recipe.optim.lr)
    found = RateSearch(name, phase.name, prepared.recipe.optim.name, curve, usual, Path(plot) if plot else None)
    if plot is not None:
        range_plot.draw(curve, Path(plot), title=f"{name} on {prepared.backbone.architecture.label}", usual=usual)
    return found
