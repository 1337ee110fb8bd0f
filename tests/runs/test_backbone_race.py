"""Of several backbones the best on the data is taken: they are ranked, the likeliest race, the run is the winner's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune import recipe as recipes
from finetune.prepare import costs
from finetune.prepare.asked import recipe_of
from finetune.prepare.costs import Speed
from finetune.runs import backbone_race
from finetune.runs.backbone_race import backbones_of
from finetune.types import Event
from tests.support import decide, random_folders, stop_after

TINY = ("test_resnet", "test_convnext", "test_efficientnet")
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 16, "image_size": 32, "device": "cpu", "workers": 0}
SAME = ("model/model.safetensors", "metrics.jsonl", "metrics.json", "split.csv")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of weights of tiny networks, at random."""
    return random_folders(tmp_path_factory.mktemp("weights"), TINY, side=32)


def among(weights: Path, *names: str) -> str:
    return ",".join(str(weights / name) for name in names or TINY)


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "race.json").read_text())


@pytest.fixture(scope="module")
def raced(drawn: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that chose among three backbones, and what it said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("raced") / "run"

    def hear(event: Event) -> None:
        said.extend([event.facts["text"]] if event.kind in ("message", "warning") else [])

    finetune.run(drawn, among=among(weights), out=out, on_event=hear, **QUICK)
    return out, said


def test_the_run_is_the_winners_and_repeats_without_the_others(raced: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, said = raced
    found = told(folder)
    assert {one["name"] for one in found["ranking"]} == set(TINY)
    assert 2 <= len(found["starts"]) <= 3 and found["winner"] in found["starts"]
    assert set(found["starts"]) | set(found["left_out"]) == set(TINY)
    assert all(place["label"] in found["starts"] for rung in found["results"] for place in rung["places"])
    recipe = recipes.load(folder / "recipe.toml")
    assert Path(recipe.backbone.weights).name == found["winner"] and recipe.backbone.among == "none"
    assert any(text.startswith("backbones: ") for text in said)
    before = [text.split(": ", 1)[-1] for text in said[: said.index(f"run folder: {folder}")]]
    assert len(before) == len(set(before)), "what one backbone was told is told again of another"
    alone = finetune.run(recipe=folder / "recipe.toml", out=tmp_path / "alone").folder
    assert [(folder / name).read_bytes() for name in SAME] == [(alone / name).read_bytes() for name in SAME]
    page = (folder / "report.html").read_text()
    assert "Backbones were ranked first" in page and all(name in page for name in TINY)


def test_a_race_of_backbones_that_was_stopped_goes_on_to_the_same_end(
    raced: tuple[Path, list[str]], drawn: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = raced
    monkeypatch.chdir(weights)  # where the names are those of folders; it goes on elsewhere
    with pytest.raises(finetune.Interrupted):
        finetune.run(drawn, among=",".join(TINY), out=tmp_path / "run", on_event=stop_after(1), **QUICK)
    assert recipes.load(tmp_path / "run" / "asked.toml").backbone.among == among(weights)
    monkeypatch.chdir(tmp_path)
    again = finetune.resume(tmp_path / "run").folder
    assert [(whole / name).read_bytes() for name in SAME] == [(again / name).read_bytes() for name in SAME]
    assert told(whole)["winner"] == told(again)["winner"]


def test_a_plan_ranks_and_says_who_would_start(drawn: Path, weights: Path, raced: tuple[Path, list[str]]) -> None:
    found = finetune.plan(drawn, among=among(weights), **QUICK)
    first = told(raced[0])["starts"][0]
    assert found.backbone == first
    assert any(note.startswith("race: ") and note.endswith(f"shown is {first}") for note in found.notes)


@pytest.mark.slow
def test_a_named_strategy_is_that_of_each_and_one_that_cannot_be_used_is_named(
    drawn: Path, weights: Path, tmp_path: Path
) -> None:
    wanted = among(weights, "test_resnet") + f",{tmp_path / 'none'},{weights}/test_resnet@48"
    result = finetune.run(drawn, among=wanted, strategy="head-only", out=tmp_path / "run", **QUICK)
    found = told(result.folder)
    assert result.strategy == "head-only"
    assert set(found["starts"]) == {"test_resnet", "test_resnet@48"}
    assert "none" in found["left_out"]


def test_the_slow_are_left_out_where_time_is_short(
    drawn: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, "few", "similar", "head-only")
    speeds = {"test_resnet": 1e-4, "test_convnext": 1e-4, "test_efficientnet": 100.0}

    def speed_of(recipe: recipes.Recipe, *_: object) -> Speed:
        seconds = speeds[Path(recipe.backbone.weights).name]
        return Speed(seconds, seconds)

    monkeypatch.setattr(backbone_race, "speed_of", speed_of)
    monkeypatch.setattr(costs, "speed_of", speed_of)
    result = finetune.run(drawn, among=among(weights), time="10m", out=tmp_path / "run", **QUICK)
    found = told(result.folder)
    assert set(found["starts"]) == {"test_resnet", "test_convnext"}
    assert "to rank it on" in found["left_out"]["test_efficientnet"]
    assert "train.time" not in found["left_out"]
    assert recipes.load(result.folder / "recipe.toml").train.time == "none"


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        ({"time": "5m"}, True),
        ({}, False),
        ({"among": "here"}, True),
        ({"among": "none", "time": "5m"}, False),
        ({"time": "5m", "backbone": "resnet18"}, False),
        ({"time": "5m", "pretrained": False}, False),
        ({"time": "5m", "strategy": "race"}, False),
        ({"time": "5m", "strategy": "scratch"}, False),
        ({"time": "5m", "strategy": "head-only"}, True),
    ],
)
def test_those_at_hand_are_taken_where_there_is_time_and_nothing_is_named(
    settings: dict[str, Any], is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_race, "on_this_machine", lambda: ("embedded", "resnet18"))
    assert backbones_of(recipe_of(settings=settings)) == (("embedded", "resnet18") if is_open else ())
    monkeypatch.setattr(backbone_race, "on_this_machine", lambda: ("embedded",))
    assert bool(backbones_of(recipe_of(settings=settings))) == ("among" in settings and is_open)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18"}, "backbone.name names one"),
        ({"weights": "folder"}, "backbone.weights names one"),
        ({"strategy": "race"}, "lets backbones race"),
        ({"strategy": "scratch"}, "random weights"),
        ({"pretrained": False}, "random weights"),
        ({"among": "a,,b"}, "beside a comma"),
    ],
)
def test_what_leaves_nothing_to_choose_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(finetune.RecipeError, match=message):
        recipe_of(settings={"among": "embedded,resnet18", **settings})


def test_commands_that_need_one_backbone_say_so(drawn: Path) -> None:
    for verb in (finetune.compare, finetune.tune, finetune.find_lr, finetune.check):
        with pytest.raises(finetune.RecipeError, match="name a backbone here") as refused:
            verb(drawn, among="embedded,resnet18")  # type: ignore[operator]
        assert "finetune backbones rank" in refused.value.hint
    with pytest.raises(finetune.RecipeError, match="name a backbone here"):
        finetune.run_several(drawn, seeds=2, among="embedded,resnet18")


@pytest.mark.slow
def test_two_folders_of_one_name_race_in_folders_of_their_own(drawn: Path, weights: Path, tmp_path: Path) -> None:
    for place, name in (("one", "test_resnet"), ("other", "test_convnext")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net").symlink_to(weights / name)
    wanted = f"{tmp_path}/one/net,{tmp_path}/other/net"
    result = finetune.run(drawn, among=wanted, strategy="head-only", out=tmp_path / "run", **QUICK)
    found = told(result.folder)
    assert len(found["starts"]) == 2 and all("/" not in label for label in found["starts"])
