"""The entrants of a comparison: strategies by name, some with a number of their own.

    head-only, top-k:3 and lp-ft:3 (the last three layer groups), linear-probe:layer3 (a probe at layer3)

Pure, and free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import RecipeError, did_you_mean
from finetune.strategy.strategies import taking
from finetune.values import STRATEGY_NAMES

USUAL = ("head-only", "linear-probe", "top-k", "full", "scratch")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A strategy and its number, if any; `label` is how it was written."""

    label: str
    strategy: str
    top_k: int | None = None
    probe_at: str | None = None

    def keys(self) -> dict[str, Any]:
        """Return the keys of the recipe that make a run this entrant's."""
        return {
            "strategy.name": self.strategy,
            "strategy.top_k": "auto" if self.top_k is None else self.top_k,
            "strategy.probe_at": self.probe_at or "auto",
        }


def entrants(labels: Sequence[str]) -> tuple[Entrant, ...]:
    """Return the entrants of a list of labels.

    Raises:
        RecipeError: an unknown name, a number that the strategy has no use for, fewer than two, one twice;
            all problems at once.
    """
    chosen, problems = [], []
    for label in labels:
        try:
            chosen.append(_entrant(label))
        except RecipeError as error:
            problems += error.problems
    twice = {entrant.label for entrant in chosen if [other.keys() for other in chosen].count(entrant.keys()) > 1}
    problems += [f"{label!r} is named twice" for label in sorted(twice)]
    if not problems and len(chosen) < 2:
        problems.append(f"a comparison needs two strategies or more, not {', '.join(labels) or 'none'}")
    if problems:
        hint = f"Write --strategies {','.join(USUAL)}; a number goes after a colon: top-k:3, linear-probe:layer3."
        raise RecipeError(problems, hint=hint)
    return tuple(chosen)


def _entrant(label: str) -> Entrant:
    name, colon, number = label.partition(":")
    if name not in STRATEGY_NAMES:
        raise RecipeError(f"strategy {name!r}: no such strategy.{did_you_mean(name, STRATEGY_NAMES)}")
    if not colon:
        return Entrant(label, name)
    if name in taking("top_k") and number.isdecimal():
        return Entrant(label, name, top_k=int(number))
    if name in taking("probe_at") and number:
        return Entrant(label, name, probe_at=number)
    if name in taking("top_k"):
        raise RecipeError(f"strategy {label!r}: {name} takes a whole number, as in {name}:3")
    raise RecipeError(f"strategy {label!r}: {name} takes no number")
