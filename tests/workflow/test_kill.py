"""Killed at any point of writing, again and again, a run that is resumed ends as one that was never killed."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import finetune
from finetune.checkpoint import best, state
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import Best, TrainState
from finetune.train import delivery, loop
from finetune.types import EpochLine
from tests.killing import FOLDERS, again, die_everywhere, forked
from tests.support import EVERY_STEP, assert_same, mostly_slow, unfinished_files

VIEWS = {"cache.views": 2}


# Where files take their place; and, slow, where any is opened.
PLACES = [((*FOLDERS, "open"), 8), (FOLDERS, 30)]


@pytest.mark.parametrize(("spared", "least"), mostly_slow(PLACES, PLACES[0]))
def test_killed_once_at_every_kind_of_point_a_run_ends_as_if_never_killed(
    tiny_run, tmp_path, monkeypatch, spared: tuple[str, ...], least: int
) -> None:
    more = {"overrides": VIEWS, "epochs": 3}
    whole = tiny_run("lp-ft", out="whole", **more).folder
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    killed = tmp_path / "killed"
    found = die_everywhere(lambda: tiny_run("lp-ft", out="killed", **more), killed, spared=spared)
    assert all(ended.signal == signal.SIGKILL for ended in found), [e.said for e in found if not e.signal]
    assert len(found) > least
    assert_same(whole, killed)
    assert unfinished_files(killed) == []


@pytest.mark.slow
def test_with_the_disk_full_at_every_kind_of_point_a_run_says_so_and_goes_on_later(
    tiny_run, tmp_path, monkeypatch
) -> None:
    whole = tiny_run(out="whole").folder
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    stopped = tmp_path / "stopped"
    found = die_everywhere(lambda: tiny_run(out="stopped"), stopped, is_full=True, spared=("os.rename", *FOLDERS))
    for ended in found:
        assert (ended.code, "cannot be" in ended.said, "hint: " in ended.said) == (5, True, True), ended.said
    assert len(found) > 15
    assert_same(whole, stopped)
    assert unfinished_files(stopped) == []


@pytest.mark.parametrize("kilobytes", [1, 40])
def test_a_file_that_may_not_grow_is_an_error_and_the_run_goes_on_later(tiny_run, tmp_path, kilobytes: int) -> None:
    """What the system refuses in the middle of a write: half a file is there, whoever writes it."""

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, kilobytes * 1000))
        tiny_run(out="stopped", overrides={"cache.pixels": "none"})

    ended = forked(starve)
    assert (ended.code, "cannot be written" in ended.said) == (5, True), ended.said
    assert unfinished_files(tmp_path) == []
    again(lambda: tiny_run(out="stopped"), tmp_path / "stopped")
    assert_same(tiny_run(out="whole").folder, tmp_path / "stopped")


RECIPES: dict[str, tuple[str, dict[str, object]]] = {
    "every step, patience 1": ("full", {"overrides": {**EVERY_STEP, "train.patience": 1, "optim.name": "nesterov"}}),
    "gradual, in micro-batches": ("gradual", {"epochs": 4, "micro_batch": 3}),
    "head-only on two views": ("head-only", {"overrides": VIEWS}),
    "a probe at an inner layer group": ("linear-probe", {"backbone": "test_resnet", "probe_at": "layer2"}),
    "reinit, from images": ("top-k", {"reinit": True, "epochs": 1, "overrides": {"cache.features": "none"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_any_single_point_a_run_ends_as_if_never_killed(tiny_run, tmp_path, monkeypatch, name: str) -> None:
    strategy, more = RECIPES[name]
    whole = tiny_run(strategy, out="whole", **more).folder
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache-all"))
    every = forked(lambda: tiny_run(strategy, out="all", **more)).points
    for number in range(1, len(every) + 1):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache-{number}"))
        begin, out = partial(tiny_run, strategy, out=str(number), **more), tmp_path / str(number)
        ended = forked(begin, lambda passed, _, at=number: passed == at)
        assert ended.signal == signal.SIGKILL, ended.said
        again(begin, out)
        assert_same(whole, out)
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_at_random_moments_by_the_system_every_run_is_exact() -> None:
    """Processes of their own, SIGKILL from outside: `tools/kill.py --times 100` is the long form."""
    tool = Path(__file__).parents[2] / "tools" / "kill.py"
    done = subprocess.run([sys.executable, tool, "--times", "14", "--seed", "1"], capture_output=True, text=True)
    assert "14 of 14 exact" in done.stdout, done.stdout + done.stderr


def test_killed_between_best_and_last_a_run_delivers_though_it_computes_other_bits_then(
    tiny_run, tmp_path, monkeypatch
) -> None:
    """As on a GPU: what is trained again is not what was lost, and it may be worse."""
    every = {"epochs": 3, "overrides": {"cache.pixels": "none"}}
    monkeypatch.setattr(loop, "QUICK", 0.0)  # a checkpoint after every epoch
    monkeypatch.setattr(delivery, "delivered", lambda history, _: len(history))
    written: list[str] = []

    def between(_: int, label: str) -> bool:
        written.append(label)
        return label.startswith("os.rename") and label.endswith("/last") and "os.rename checkpoints/best-2" in written

    ended = forked(lambda: tiny_run(out="killed", **every), between)
    assert ended.signal == signal.SIGKILL, ended.said
    place = tmp_path / "killed" / "checkpoints"
    assert {path.name for path in place.glob("best*")} == {"best-1", "best-2"}
    monkeypatch.setattr(delivery, "delivered", lambda *_: 1)  # what comes now is worse
    result = finetune.resume(tmp_path / "killed")
    assert result.delivered_epoch == 1
    assert {path.name for path in place.iterdir()} == {"last", "last.before", "best"}


def test_each_checkpoint_finds_the_weights_of_the_epoch_that_it_speaks_of(tmp_path) -> None:
    folder = RunFolder(tmp_path)

    def epoch(number: int, *, is_better: bool) -> TrainState:
        now.history.append(EpochLine("head", number, 0.1, 1.0, 0.5, 1.0, 0.5))
        if is_better:
            now.best = Best(number / 10, 1.0, 0, number)
            best.keep(folder, {"weight": torch.tensor([float(number)])}, now)
        return now

    now = TrainState()
    for number, is_better in [(1, True), (2, True), (3, False), (4, True), (5, True)]:
        epoch(number, is_better=is_better)
        for place in state.places(folder.last):  # a process killed here goes on from either of them
            if found := state.load_whole(place):
                assert best.load(folder, found.state.best).model["weight"] == found.state.best.epoch
        state.save(folder.last, {}, {}, now)
        best.drop_unspoken(folder)
    names = {path.name for path in folder.best.parent.iterdir()}
    assert names == {"last", "last.before", "best-4", "best-5"}
    best.settle(folder, now.best)
    assert {path.name for path in folder.best.parent.iterdir()} == {"last", "last.before", "best"}
    assert best.load(folder, now.best).model["weight"] == 5
    with pytest.raises(finetune.CheckpointError, match="no longer holds the best weights"):
        best.load(folder, Best(0.4, 1.0, 0, 4))
