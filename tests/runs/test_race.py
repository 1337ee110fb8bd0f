"""A race ends as its winner would have ended alone, stopped on the way or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.checkpoint.run_folder import RunFolder
from finetune.runs import race, start
from finetune.train.delivery import delivered
from finetune.types import EpochLine, Event
from tests.killing import FOLDERS, die_everywhere, forked
from tests.support import decide, stop_after, unfinished_files

SAME = ("model/model.safetensors", "checkpoints/best/model.safetensors", "metrics.jsonl", "metrics.json", "split.csv")
QUICK = {"batch_size": 16, "workers": 0, "device": "cpu", "pretrained": False}
TINY = {"epochs": 4, "overrides": {"cache.features": "none"}}
SPARED = ("os.rename", *FOLDERS)
MORE = {"epochs": 6, "image_size": 32, "overrides": {"cache.features": "none"}}


@pytest.fixture(scope="module")
def many() -> Iterator[None]:
    """The verdict of a large set unlike the pretraining data, so that strategies race that train through layers."""
    with pytest.MonkeyPatch.context() as patched:
        decide(patched, "many", "dissimilar", "full")
        yield


@pytest.fixture(scope="module")
def whole(many, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A race that nothing stopped."""
    place = tmp_path_factory.mktemp("whole") / "race"
    return finetune.run(drawn, strategy="race", backbone="test_resnet", out=place, **{**QUICK, **MORE}).folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "race.json").read_text())


def test_the_winner_has_the_bits_of_itself_alone_and_the_report_tells_the_race(whole: Path, tmp_path: Path) -> None:
    found = told(whole)
    assert len(found["starts"]) >= 2
    assert found["winner"] in found["starts"]
    assert (whole / "recipe.toml").is_file() and not (whole / "race" / found["winner"]).exists()
    alone = finetune.run(recipe=whole / "recipe.toml", out=tmp_path / "alone")
    assert files(whole) == files(alone.folder)
    page = (whole / "report.html").read_text()
    assert "The race" in page and all(label in page for label in found["starts"])
    for label in (label for label in found["starts"] if label != found["winner"]):
        lines = (whole / "race" / label / "metrics.jsonl").read_text().splitlines()
        reached = max(p["epochs"] for rung in found["results"] for p in rung["places"] if p["label"] == label)
        assert len(lines) == reached


def test_a_race_that_goes_through_layers_is_won_by_val(whole: Path) -> None:
    """Of two that train through layers the one whose val is better at the rung goes on, whoever that is."""
    found = told(whole)
    (rung,) = found["results"]
    first, second = rung["places"]
    assert (first["val_score"], -first["val_loss"]) >= (second["val_score"], -second["val_loss"])
    assert (found["winner"], first["is_kept"], second["is_kept"]) == (first["label"], True, False)
    assert found["took"]["times"] <= 1.5
    history = [EpochLine(**json.loads(line)) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    would_be = delivered(history[: rung["epochs"]], (whole / "split.csv").read_text().count(",val,"))
    assert history[would_be - 1].val_top1 == first["val_score"]


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 13])
def test_a_race_that_was_stopped_goes_on_to_the_same_end(whole: Path, quick_run, tmp_path: Path, steps: int) -> None:
    with pytest.raises(finetune.Interrupted) as stopped:
        quick_run("race", out="stopped", on_event=stop_after(steps), **MORE)
    assert stopped.value.hint == f"Resume with: finetune run --resume {tmp_path / 'stopped'}"
    again = finetune.resume(tmp_path / "stopped")
    assert files(whole) == files(again.folder)
    assert {key: told(whole)[key] for key in ("results", "winner", "took")} == {
        key: told(again.folder)[key] for key in ("results", "winner", "took")
    }


def test_a_winner_that_was_half_moved_is_moved_to_its_end(whole: Path, quick_run, tmp_path: Path, monkeypatch) -> None:
    moved = os.replace

    def stop(source: Path, target: Path) -> None:
        if Path(source).name == "recipe.toml" and Path(source).parent.parent.name == "race":
            raise KeyboardInterrupt
        moved(source, target)

    monkeypatch.setattr(race.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        quick_run("race", out="stopped", **MORE)
    monkeypatch.setattr(race.os, "replace", moved)
    assert RunFolder(tmp_path / "stopped").is_racing
    assert files(finetune.resume(tmp_path / "stopped").folder) == files(whole)


def test_a_candidate_that_fails_leaves_the_race(many, quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = race.train

    def train(folder: RunFolder, *more: Any, **named: Any) -> Any:
        if folder.path.name == "full":
            raise finetune.TrainingError("the loss is nan")
        return trained(folder, *more, **named)

    monkeypatch.setattr(race, "train", train)
    result = quick_run("race", out="race", **MORE)
    assert told(result.folder)["failed"] == {"full": "the loss is nan"}
    assert result.strategy != "full"
    assert "full failed" in (result.folder / "report.html").read_text()


def test_on_few_images_what_races_stands_on_cached_features(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(monkeypatch, "few", "similar", "head-only")
    result = quick_run("race", out="race", epochs=5)
    found = told(result.folder)
    assert found["starts"][0] == "head-only" and found["starts"][1].startswith("linear-probe")
    (dear,) = found["left_out"]
    assert dear.startswith(("lp-ft", "top-k", "full"))
    assert result.strategy in ("head-only", "linear-probe")


def test_a_race_killed_while_it_is_laid_out_begins_anew(many, tiny_run, tmp_path: Path) -> None:
    whole = tiny_run("race", out="whole", **TINY).folder
    out = tmp_path / "killed"
    ended = forked(lambda: tiny_run("race", out="killed", **TINY), lambda _, label: label.endswith("/.race.json.new"))
    assert ended.signal == signal.SIGKILL, ended.said
    assert (out / "race").is_dir() and not (out / "race.json").exists()
    assert files(finetune.resume(out).folder) == files(whole)


@pytest.mark.slow
def test_a_race_killed_at_every_kind_of_point_ends_as_if_never_killed(many, tiny_run, tmp_path: Path) -> None:
    whole = tiny_run("race", out="whole", **TINY).folder
    killed = tmp_path / "killed"
    found = die_everywhere(lambda: tiny_run("race", out="killed", **TINY), killed, spared=SPARED)
    assert all(ended.signal == signal.SIGKILL for ended in found), [one.said for one in found if not one.signal]
    assert len(found) > 20
    assert files(killed) == files(whole)
    assert told(killed)["results"] == told(whole)["results"]
    assert unfinished_files(killed) == [] and not (killed / "asked.toml").exists()


def test_a_race_whose_images_changed_is_refused_by_its_own_name(many, tiny_run, few: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(few, tmp_path / "own"))
    with pytest.raises(finetune.Interrupted):
        tiny_run("race", data=own, on_event=stop_after(2), **TINY)
    sorted(own.rglob("*.jpg"))[0].unlink()
    with pytest.raises(finetune.CheckpointError, match="1 gone") as refused:
        finetune.resume(tmp_path / "run")
    assert f"--recipe {tmp_path / 'run' / 'asked.toml'};" in refused.value.hint
    assert f"finetune run --resume {tmp_path / 'run'} --allow data" in refused.value.hint
    finetune.resume(tmp_path / "run", allow=["data"])
    assert "1 gone" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "changed",
    [
        {"winner": "../../elsewhere"}, {"starts": [".."]}, {"starts": []}, {"work": {}}, {"rungs": [0]},
        {"rungs": "all"}, {"winner": "nobody"}, {"format_version": 2},
    ],
)  # fmt: skip
def test_a_race_that_is_told_wrong_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    work = {"epochs": [1.0], "num_images": 1}
    content = {"format_version": 1, "starts": ["full"], "rungs": [1], "work": {"full": work}, "winner": None}
    (tmp_path / "asked.toml").write_text("format_version = 1\n")
    for damaged in (json.dumps({**content, **changed}), "[]", "{"):
        (tmp_path / "race.json").write_text(damaged)
        with pytest.raises(finetune.CheckpointError, match=r"race\.json"):
            finetune.resume(tmp_path)


def test_a_race_that_still_runs_is_not_resumed(many, tiny_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(start, "LINGER", 0)
    refused: list[str] = []

    def again(event: Event) -> None:
        if event.kind == "step" and not refused:
            for folder in (tmp_path / "run", tmp_path / "run" / "race" / "full"):
                with pytest.raises(finetune.ResourceError, match="another process") as error:
                    finetune.resume(folder)
                refused.append(error.value.message)

    tiny_run("race", on_event=again, **TINY)
    assert len(refused) == 2


def test_a_plan_of_a_race_says_who_would_start(drawn: Path) -> None:
    plan = finetune.plan(drawn, strategy="race", backbone="test_resnet", image_size=32, pretrained=False, device="cpu")
    assert plan.notes[0].startswith("race: ")
    with pytest.raises(finetune.RecipeError, match="strategy race decides from the data"):
        finetune.plan(strategy="race", backbone="test_resnet")
