"""A verdict that is not certain: both of its choices are tried where the time holds both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune
from finetune import recipe as recipes
from finetune.prepare import time_limit
from finetune.prepare.prepared import Prepared
from finetune.runs import doubt
from finetune.strategy import race
from finetune.strategy.budget import Option
from finetune.types import Interval, Verdict
from tests.support import decide, stop_after

SMALL = {"epochs": 2, "image_size": 32}
SURE = Interval(1.0, 0.9, 1.1)


@pytest.fixture(autouse=True)
def torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between head-only and full, with a minute of computing for each."""
    decide(monkeypatch, "many", "similar", "head-only", rival="full")

    def by_column(_: object, *, assume: tuple[str, str]) -> Verdict:
        strategy = "head-only" if "similar" in assume else "full"
        return Verdict("many", assume[1], strategy, "so it would be", SURE, SURE)

    def predicted(candidate: Prepared, *, num_images: int) -> Option:
        return Option(candidate.recipe.strategy.name, 2, 1, 0.0, 30.0)

    monkeypatch.setattr(race, "decide", by_column)
    for module in (doubt, time_limit):
        monkeypatch.setattr(module, "predicted", predicted)


def test_a_time_that_holds_both_lets_val_decide(quick_run) -> None:
    said: list[str] = []
    result = quick_run("auto", time="3m", on_event=lambda event: said.append(str(event.facts.get("text", ""))), **SMALL)
    told = json.loads((result.folder / "race.json").read_text())
    assert told["starts"] == ["head-only", "full"]
    ((rung,)) = told["results"]
    assert {place["label"]: place["epochs"] for place in rung["places"]} == {"head-only": 2, "full": 2}
    assert told["winner"] == max(rung["places"], key=lambda place: (place["val_score"], -place["val_loss"]))["label"]
    assert any(text.startswith("time: 3m holds both, head-only and full") for text in said)
    recipe = recipes.load(result.folder / "recipe.toml")
    assert (recipe.strategy.name, recipe.train.time) == (told["winner"], "none")
    assert "holds both" in (result.folder / "report.html").read_text()


@pytest.mark.parametrize("time", ["2m", "none"])  # of two minutes a fifth is kept back
def test_where_it_does_not_the_cheaper_one_is_taken(quick_run, time: str) -> None:
    result = quick_run("auto", time=time, **SMALL)
    assert result.strategy == "head-only" and not (result.folder / "race.json").exists()


def test_it_is_stopped_and_resumed_as_a_race_is(quick_run, tmp_path: Path) -> None:
    whole = quick_run("auto", out="whole", time="3m", **SMALL)
    with pytest.raises(finetune.Interrupted):
        quick_run("auto", out="stopped", time="3m", on_event=stop_after(4), **SMALL)
    resumed = finetune.resume(tmp_path / "stopped")
    for name in ("model/model.safetensors", "metrics.json", "metrics.jsonl"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


def test_a_race_of_strategies_starts_both_of_a_doubt(quick_run) -> None:
    result = quick_run("race", **SMALL)
    told = json.loads((result.folder / "race.json").read_text())
    assert {"head-only", "full"} <= {*told["starts"], *told["left_out"]}
