"""Who takes part in a comparison, from how it is written."""

from __future__ import annotations

import pytest

from finetune.errors import RecipeError
from finetune.strategy.entrants import USUAL, entrants


def test_a_number_belongs_to_the_strategy_before_it() -> None:
    top, then, probe, full = entrants(["top-k:3", "lp-ft:3", "linear-probe:layer2", "full"])
    assert (then.strategy, then.top_k) == ("lp-ft", 3)
    assert top.keys() == {"strategy.name": "top-k", "strategy.top_k": 3, "strategy.probe_at": "auto"}
    assert probe.keys()["strategy.probe_at"] == "layer2"
    assert full.keys() == {"strategy.name": "full", "strategy.top_k": "auto", "strategy.probe_at": "auto"}


def test_the_usual_ones_are_five_with_scratch_among_them() -> None:
    assert [one.strategy for one in entrants(USUAL)] == ["head-only", "linear-probe", "top-k", "full", "scratch"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["head-only", "ful"], "Did you mean 'full'"),
        (["head-only", "top-k:x"], "whole number"),
        (["head-only", "lp-ft:layer3"], "lp-ft takes a whole number"),
        (["head-only", "full:2"], "full takes no number"),
        (["full"], "needs two strategies"),
        (["top-k:2", "full", "top-k:2"], "'top-k:2' is named twice"),
        (["top-k:2", "top-k:02"], "named twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(labels: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as error:
        entrants(labels)
    assert "--strategies" in error.value.hint


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RecipeError, match="2 problems"):
        entrants(["ful", "top-k:"])
