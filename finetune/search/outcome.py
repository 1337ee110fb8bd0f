"""What a search for hyperparameters comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import inline
from finetune.search.study import TrialFacts
from finetune.types import to_json
from finetune.wording import counted

SHOWN = 10  # trials in a notebook


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a search came out: every trial, the winner's values, and how it does beside the recipe as it was."""

    folder: Path
    score: str  # what trials are judged by on val
    checks: tuple[str, ...]
    trials: tuple[TrialFacts, ...]
    usual: TrialFacts
    best: TrialFacts
    curves: tuple[str, ...]
    recipe: Path

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        told = inline.html_lines(f"the best of {counted(len(self.trials), 'trial')}: {self.recipe}", *self.curves)
        best = sorted(self.trials, key=lambda one: one.rank, reverse=True)[:SHOWN]
        keys = list(dict.fromkeys(key for one in best for key in one.params))
        rows = ([one.study, one.number + 1, one.score, one.loss, *map(one.params.get, keys)] for one in best)
        return told + inline.html_table(["study", "trial", f"val {self.score}", "loss", *keys], rows)

    def to_json(self) -> dict[str, Any]:
        """Return the search as one JSON document."""
        return {**to_json(self), "folder": str(self.folder), "recipe": str(self.recipe)}
