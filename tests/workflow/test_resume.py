"""Stopped by a signal at any step and resumed, a run ends as if it had never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import finetune
from finetune import entries
from finetune.types import Event

SAME = ("model/model.safetensors", "checkpoints/best/model.safetensors", "metrics.jsonl", "metrics.json")


def stop_after(steps: int, number: signal.Signals = signal.SIGTERM):
    """Yield an `on_event` that sends this process a signal at the given step."""
    seen = 0

    def on_event(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "step"
        if event.kind == "step" and seen == steps:
            os.kill(os.getpid(), number)

    return on_event


@pytest.mark.parametrize(
    ("strategy", "backbone", "steps"),
    [
        ("head-only", "test_resnet", 2),
        ("top-k", "test_efficientnet", 4),
        ("full", "test_vit", 3),
        ("gradual", "test_resnet", 6),
        ("lp-ft", "test_convnext", 1),
    ],
)
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
    for name in SAME:
        assert (whole.folder / name).read_bytes() == (place / name).read_bytes(), name


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(quick_run, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted, match="SIGINT") as stopped:
        quick_run(on_event=stop_after(1, signal.SIGINT))
    assert stopped.value.exit_code == 130
    assert stopped.value.hint == f"Go on with: finetune run --resume {tmp_path / 'run'}"
    assert (tmp_path / "run" / "checkpoints" / "last" / "complete.json").is_file()


def test_a_damaged_last_checkpoint_is_not_used(quick_run, tmp_path: Path) -> None:
    with pytest.raises(finetune.Interrupted):
        quick_run(on_event=stop_after(5))
    state = tmp_path / "run" / "checkpoints" / "last" / "state.json"
    state.write_bytes(state.read_bytes()[:-20])
    with pytest.raises(finetune.CheckpointError, match="damaged"):
        finetune.resume(tmp_path / "run")


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
        if event.facts.get("task") == "cache features" and event.facts["done"] == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(finetune.Interrupted):
        quick_run(epochs=6, on_event=on_event)
    kept = entries.list_entries(entries.entries_folder())
    assert [entry.num_rows for entry in kept if entry.about["kind"] == "features"] == [32]
    finetune.resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").is_file()
