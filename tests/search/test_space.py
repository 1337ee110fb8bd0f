"""What `--search` names, and grids and narrower ranges of it."""

from __future__ import annotations

import math

import pytest

from finetune.errors import RecipeError
from finetune.search.space import (
    ChoiceList,
    Range,
    around_best,
    grid_points,
    space_from_json,
    space_of,
    space_to_json,
    usual_space,
)
from finetune.settings import Recipe


def test_ranges_and_choices_are_read_as_they_are_written() -> None:
    space = space_of(
        ["optim.lr=log:1e-4:1e-1", "optim.weight_decay=0,1e-5,0.1", "regularise.dropout=lin:0:0.5",
         "top_k=int:1:4", "optim.name=adamw,nesterov"], Recipe()
    )  # fmt: skip
    assert space == {
        "optim.lr": Range("log", 1e-4, 0.1),
        "optim.weight_decay": ChoiceList((0, 1e-5, 0.1)),
        "regularise.dropout": Range("lin", 0.0, 0.5),
        "strategy.top_k": Range("int", 1.0, 4.0),
        "optim.name": ChoiceList(("adamw", "nesterov")),
    }
    assert space_from_json(space_to_json(space)) == space


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.rate=log:1:2", "no such key"),
        ("optim.lr", "write it as KEY=VALUES"),
        ("optim.lr=log:0:1", "above 0"),
        ("optim.lr=lin:2:1", "LOW must be below HIGH"),
        ("optim.lr=log:1", "a range has two numbers"),
        ("optim.lr=log:a:b", "a range has two numbers"),
        ("optim.lr=0.1", "leaves nothing to search"),
        ("optim.name=adamw,sdg", "Did you mean 'sgd'"),
        ("strategy.top_k=int:1.5:3", "whole numbers"),
        ("regularise.dropout=lin:0:2", "regularise.dropout = 2.0"),
        ("split.val=0.1,0.2", "cannot be compared"),
        ("train.device=cpu,cuda", "cannot be compared"),
    ],
)
def test_what_a_recipe_would_refuse_is_refused_before_any_trial(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        space_of([text], Recipe())
    assert said in refused.value.message


def test_all_problems_are_told_at_once_and_a_key_is_named_once() -> None:
    with pytest.raises(RecipeError) as refused:
        space_of(["optim.lr=log:0:1", "optim.lr=1,2", "lr=1,2", "x.y=1,2"], Recipe())
    assert len(refused.value.problems) == 3 and "is named twice" in refused.value.message


def test_a_grid_has_as_many_values_on_each_range_as_the_trials_allow() -> None:
    space = {"a": Range("log", 1e-4, 1.0), "b": Range("lin", 0.0, 1.0), "c": ChoiceList((1, 2))}
    points = grid_points(space, 18)
    assert len(points) == 18 == len({tuple(point.values()) for point in points})
    assert sorted({point["a"] for point in points}) == pytest.approx([1e-4, 1e-2, 1.0])
    assert len(grid_points(space, 3)) == 8  # two values on each range at least
    assert {point["a"] for point in grid_points({"a": Range("int", 1, 3)}, 9)} == {1, 2, 3}


def test_a_range_is_narrowed_around_the_best_and_stays_inside() -> None:
    space = {
        "a": Range("log", 1e-4, 1.0),
        "b": Range("lin", 0.0, 1.0),
        "c": Range("int", 1, 9),
        "d": ChoiceList((1, 2)),
    }
    found = around_best(space, {"a": 1e-2, "b": 0.95, "c": 5, "d": 2})
    a = found["a"]
    assert isinstance(a, Range)
    assert math.log(a.high / a.low) == pytest.approx(math.log(1e4) / 4) and math.sqrt(a.low * a.high) == pytest.approx(
        1e-2
    )
    assert found["b"] == Range("lin", 0.825, 1.0) and found["c"] == Range("int", 4, 6) and found["d"] == space["d"]


def test_the_usual_space_holds_what_the_strategy_has() -> None:
    space = usual_space(1e-3, 0.05)
    lr, decay = space["optim.lr"], space["optim.weight_decay"]
    assert isinstance(lr, Range) and lr.low < 1e-3 < lr.high
    assert isinstance(decay, ChoiceList) and {0.0, 1e-5, 1e-4, 0.05} == set(decay.values)
