"""A run within a time: by predictions that the tests make up, so that no machine is too slow for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune
from finetune import recipe as recipes
from finetune.device import Compute
from finetune.prepare import time_limit as timed
from finetune.prepare.asked import recipe_of
from finetune.prepare.costs import Speed, costs
from finetune.prepare.inputs import Inputs, list_data, skeleton_of
from finetune.prepare.prepared import Prepared, planned_run
from finetune.prepare.resolve import resolve_numbers
from finetune.strategy.budget import Option
from tests.support import decide

real_predicted = timed.predicted
SECONDS = {
    "full": (0, 60),
    "top-k": (60, 10),
    "head-only": (60, 0.1),
    "linear-probe": (20, 0),
    "gradual": (30, 20),
    "lp-ft": (60, 60),
}


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The strategies whose time was predicted, in order."""
    names: list[str] = []

    def predicted(candidate: Prepared, *, num_images: int) -> Option:
        name = candidate.recipe.strategy.name
        names.append(name)
        return Option(name, int(candidate.recipe.train.epochs), len(candidate.phases), *SECONDS[name])

    monkeypatch.setattr(timed, "predicted", predicted)
    return names


@pytest.fixture
def decides_full(monkeypatch: pytest.MonkeyPatch) -> None:
    decide(monkeypatch, "many", "dissimilar", "full")


def settled(folder: Path) -> tuple[str, int, str]:
    recipe = recipes.load(folder / "recipe.toml")
    return recipe.strategy.name, int(recipe.train.epochs), recipe.train.time


def test_a_named_strategy_has_fewer_epochs_and_the_report_says_why(quick_run) -> None:
    result = quick_run("full", epochs=6, image_size=32, time="5m")  # of which four minutes are planned
    assert settled(result.folder) == ("full", 4, "none")
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) <= 4
    assert "In 5m full has time for 4 of its 6 epochs, about 4m of computing." in (
        result.folder / "report.html"
    ).read_text().replace("<p>", "")


def test_a_named_strategy_without_time_refuses_with_what_would_fit(quick_run, tmp_path: Path) -> None:
    with pytest.raises(finetune.RecipeError, match="1 epoch of full alone is predicted to take 60s") as error:
        quick_run("full", time="50s")
    assert error.value.hint == "Give --time 75s or more, or --strategy linear-probe, which would fit."
    assert not (tmp_path / "run").exists()
    with pytest.raises(finetune.RecipeError, match="4 epochs of gradual alone"):
        quick_run("gradual", epochs=8, time="2m")


@pytest.mark.parametrize(
    ("time", "strategy", "epochs", "words"),
    [
        pytest.param("1h", "full", 6, "full fits into 1h", marks=pytest.mark.slow),
        ("5m", "full", 4, "full has time for 4 of its 6 epochs"),
        pytest.param(
            *("2m", "top-k", 3, "full has no time for a third of its epochs → top-k, 3 epochs"), marks=pytest.mark.slow
        ),
        ("30s", "linear-probe", 6, "→ linear-probe, about 20s"),
    ],
)
def test_auto_falls_to_what_fits_and_its_sentence_says_so(
    decides_full, quick_run, time: str, strategy: str, epochs: int, words: str
) -> None:
    result = quick_run("auto", epochs=6, image_size=32, time=time)
    assert settled(result.folder) == (strategy, epochs, "none")
    verdict = json.loads((result.folder / "evidence.json").read_text())["verdict"]
    assert verdict["strategy"] == strategy
    assert verdict["reason"].startswith("so it was decided; ") and words in verdict["reason"]


def test_auto_refuses_where_nothing_fits(decides_full, quick_run) -> None:
    with pytest.raises(finetune.RecipeError, match="linear-probe alone is predicted to take 20s") as error:
        quick_run("auto", time="10s")
    assert "--time 25s" in error.value.hint


def test_a_refit_has_half_of_the_time_for_each_fit(quick_run) -> None:
    result = quick_run("full", epochs=6, image_size=32, time="5m", refit=True)
    assert settled(result.folder)[1] == 2


def test_a_race_plans_for_two_thirds_of_the_time(decides_full, quick_run) -> None:
    result = quick_run("race", epochs=6, image_size=32, time="6m")  # 192 seconds for each: three epochs of full
    found = json.loads((result.folder / "race.json").read_text())
    assert found["starts"][0] == "full"
    assert len(found["work"]["full"]["epochs"]) == 3
    assert settled(result.folder)[2] == "none"


def test_a_plan_within_a_time_says_so_and_predicts_no_cheaper_strategy(decides_full, drawn: Path, asked_for) -> None:
    finetune.plan(drawn, backbone="test_resnet", pretrained=False, epochs=6, image_size=32, time="5m")
    assert asked_for == ["full"]
    plan = finetune.plan(strategy="full", backbone="test_resnet", epochs=6, time="5m")
    assert plan.phases[0].epochs == 4
    assert "4 of its 6 epochs" in plan.notes[0]


@pytest.mark.parametrize("time", ["20", "0s", "m", "1.5h", "20 m", "90s1m"])
def test_a_time_that_cannot_be_read_is_refused(drawn: Path, time: str) -> None:
    with pytest.raises(finetune.RecipeError, match="must be a time such as 90s, 20m or 1h30m"):
        finetune.plan(drawn, strategy="full", backbone="test_resnet", time=time)


@pytest.mark.parametrize("strategy", ["full", "top-k", "linear-probe", "lp-ft"])
def test_predicted_times_are_those_of_the_plan(drawn: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an epoch takes and what is taken once add up to the costs, at a speed that is made up."""
    speed = Speed(forward=0.01, step=0.03)
    monkeypatch.setattr("finetune.prepare.costs.speed_of", lambda *_: speed)
    recipe = recipe_of(
        None, settings={"strategy": strategy, "backbone": "test_resnet", "epochs": 8, "pretrained": False}
    )
    skeleton = skeleton_of(recipe, num_classes=6)
    recipe = resolve_numbers(recipe, skeleton, None)
    manifest = list_data(recipes.update(recipe, {"data.path": str(drawn)}))
    made = planned_run(Inputs(recipe, manifest, skeleton, None, Compute.of(recipe.train)), recipe)
    option = real_predicted(made, num_images=100)
    assert option.seconds(8) == pytest.approx(sum(cost.seconds for cost in costs(made, skeleton, num_images=100)))
    assert (option.once > 0) == (strategy != "full")
    assert (option.epoch > 0) == (strategy != "linear-probe")
