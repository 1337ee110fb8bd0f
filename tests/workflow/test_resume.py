"""Stopped by a signal at any step and resumed, a run ends as if it had never stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import finetune
from finetune import cache_entries
from finetune.types import Event
from tests.support import EVERY_STEP, assert_same, mostly_slow, stop_after

CASES = [
    ("head-only", "test_resnet", 2),
    ("top-k", "test_efficientnet", 4),
    ("full", "test_vit", 3),
    ("gradual", "test_resnet", 6),
    ("lp-ft", "test_convnext", 1),
]


@pytest.mark.parametrize(("strategy", "backbone", "steps"), mostly_slow(CASES, CASES[1], CASES[3]))
def test_a_resumed_run_is_bit_identical(quick_run, strategy: str, backbone: str, steps: int) -> None:
    more = {
        "backbone": backbone,
        "epochs": 4 if strategy == "gradual" else 2,
        "overrides": {"backbone.model_args": {"drop_path_rate": 0.3}, "train.patience": "none"},
    }
    whole = quick_run(strategy, out="whole", **more)
    with pytest.raises(finetune.Interrupted) as stopped:
        quick_run(strategy, out="stopped", on_event=stop_after(steps), **more)
    assert stopped.value.exit_code == 143
    place = Path(stopped.value.hint.split()[-1])
    finetune.resume(place)
    assert_same(whole.folder, place)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(quick_run, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted, match="SIGINT") as stopped:
        quick_run(on_event=stop_after(1, signal.SIGINT))
    assert stopped.value.exit_code == 130
    assert stopped.value.hint == f"Resume with: finetune run --resume {tmp_path / 'run'}"
    assert (tmp_path / "run" / "checkpoints" / "last" / "complete.json").is_file()


@pytest.fixture
def stopped(tiny_run, tmp_path: Path) -> Path:
    """A run with a checkpoint at every step, stopped at its fifth."""
    with pytest.raises(finetune.Interrupted):
        tiny_run(on_event=stop_after(5), overrides=EVERY_STEP)
    return tmp_path / "run"


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_aloud(tiny_run, stopped: Path, file: str) -> None:
    spoiled = stopped / "checkpoints" / "last" / file
    spoiled.write_bytes(spoiled.read_bytes()[:-20] + b"x" * 20)
    said: list[str] = []
    finetune.resume(stopped, on_event=lambda event: said.append(str(event.facts.get("text"))))
    assert any("last is damaged; the one before it is used" in text for text in said)
    assert_same(tiny_run(out="whole").folder, stopped)


def test_two_damaged_checkpoints_are_an_error_with_the_way_out(stopped: Path) -> None:
    for place in ("last", "last.before"):
        (stopped / "checkpoints" / place / "model.safetensors").write_bytes(b"")
    with pytest.raises(finetune.CheckpointError, match="is damaged, and so is the one before") as failed:
        finetune.resume(stopped)
    assert f"finetune run --recipe {stopped / 'recipe.toml'}" in failed.value.hint


def test_weights_of_another_epoch_are_never_taken_for_the_best(tiny_run, tmp_path: Path) -> None:
    folder = tiny_run().folder
    (folder / "metrics.json").unlink()
    state = folder / "checkpoints" / "best" / "state.json"
    state.write_bytes(state.read_bytes()[:-20])
    with pytest.raises(finetune.CheckpointError, match="best"):
        finetune.resume(folder)
    assert not (folder / "metrics.json").exists()


def test_lines_behind_the_checkpoint_are_cut(stopped: Path) -> None:
    (stopped / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 9}\n{"ep')
    with pytest.raises(finetune.Interrupted):
        finetune.resume(stopped, on_event=stop_after(1))
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1]


def test_a_run_may_stop_at_every_step_and_go_on(tiny_run, tmp_path: Path) -> None:
    more = {"overrides": {"train.patience": 1, "optim.name": "nesterov"}}
    whole = tiny_run(out="whole", **more).folder
    go_on, times = lambda: tiny_run(on_event=stop_after(1), **more), 0
    while True:
        try:
            go_on()
            break
        except finetune.Interrupted:
            times += 1
            go_on = lambda: finetune.resume(tmp_path / "run", on_event=stop_after(1))  # noqa: E731
    assert times >= 4
    assert_same(whole, tmp_path / "run")


def test_a_finished_run_is_not_resumed(finished: Path) -> None:
    with pytest.raises(finetune.CheckpointError, match="is finished"):
        finetune.resume(finished)


def test_a_run_without_a_checkpoint_starts_at_the_first_step(quick_run, tmp_path: Path) -> None:
    whole = quick_run(out="whole")
    for name in ("metrics.json", "checkpoints/last/complete.json", "checkpoints/best/complete.json"):
        (whole.folder / name).rename(tmp_path / name.replace("/", "-"))
    before = (whole.folder / "metrics.jsonl").read_bytes()
    for place in ("last", "best"):
        for file in (whole.folder / "checkpoints" / place).iterdir():
            file.unlink()
        (whole.folder / "checkpoints" / place).rmdir()
    finetune.resume(whole.folder)
    assert (whole.folder / "metrics.jsonl").read_bytes() == before


def test_a_signal_stops_the_filling_of_the_cache_and_what_is_filled_stays(quick_run, tmp_path: Path) -> None:
    def on_event(event: Event) -> None:
        if str(event.facts.get("task")).startswith("cache features") and event.facts["done"] == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(finetune.Interrupted):
        quick_run(epochs=6, on_event=on_event)
    kept = cache_entries.list_entries(cache_entries.entries_folder())
    assert [entry.num_rows for entry in kept if entry.about["kind"] == "features" and entry.num_rows] == [32]
    finetune.resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"phases": {"0": 3}}, "phases.0 must be true or false"),
        ({"phases": {"0": True}, "engines": {"0": 4}}, "engines.0 must be text"),
        ({"phases": []}, "phases must be a table"),
        ({}, "phases is missing"),
    ],
)
def test_a_damaged_cached_json_is_told_in_plain_words(tiny_run, tmp_path: Path, content: dict, reason: str) -> None:
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", on_event=stop_after(2))
    (tmp_path / "run/cached.json").write_text(json.dumps({"format_version": 1, **content}))
    with pytest.raises(finetune.CheckpointError) as refused:
        finetune.resume(tmp_path / "run")
    assert refused.value.message.endswith(f"cached.json does not hold what it should: {reason}")
