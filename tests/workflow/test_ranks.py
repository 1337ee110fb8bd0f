"""A run that several processes share: what one alone ends with, nothing computed twice, killed and resumed exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune import ranks
from finetune.errors import DataError
from finetune.features import sources
from finetune.train import step
from finetune.types import Event
from tests.launching import launched, values
from tests.support import EVERY_STEP, FLAGS, SAME, assert_same

TOOL = Path(__file__).parents[2] / "tools" / "kill.py"
PLAIN = {"optim.name": "sgd", "cache.engine": "torch"}  # nothing is drawn in a step
TOLERANCE = 1e-5  # of a weight, after some steps of SGD


@pytest.fixture
def shared_run(few: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run on a few images with a tiny network of batch norms; `begin` does what each process does."""

    def run(strategy: str, *, out: str, overrides: dict[str, Any] | None = None, **more: Any) -> finetune.RunResult:
        quick = {"image_size": 32, "batch_size": 6, "workers": 0, "device": "cpu", "pretrained": False, "epochs": 1}
        quick["backbone"] = "test_resnet"
        return finetune.run(
            few, strategy=strategy, out=tmp_path / out, overrides={**PLAIN, **(overrides or {})},
            **{**quick, **more},
        )  # fmt: skip

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_alike(one: Path, several: Path) -> None:
    there = weights(several)
    for name, weight in weights(one).items():
        torch.testing.assert_close(there[name], weight, rtol=0, atol=TOLERANCE, msg=name)
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, several)]
    for ours, theirs in zip(*lines, strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-4)
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-4)


def test_two_processes_end_with_what_one_does_and_one_writes_and_tells(shared_run, tmp_path: Path) -> None:
    """From scratch: batch norms follow the batches, of which each process has a part."""
    shared_run("scratch", out="one")

    def work(rank: int) -> tuple[finetune.RunResult, int]:
        heard: list[Event] = []
        return shared_run("scratch", out="two", on_event=heard.append), len(heard)

    (first, told), (second, untold) = values(launched(2, work))
    assert first == second
    assert told > 0
    assert untold == 0
    assert_alike(tmp_path / "one", tmp_path / "two")
    names = [{path.name for path in (tmp_path / out).iterdir()} for out in ("one", "two")]
    assert names[0] == names[1]
    assert json.loads((tmp_path / "two" / "began.json").read_text())["processes"] == 2


@pytest.mark.parametrize("place", ["auto", pytest.param("memory", marks=pytest.mark.slow)])
def test_each_image_goes_through_the_trunk_in_one_process(shared_run, tmp_path: Path, monkeypatch, place: str) -> None:
    def work(rank: int) -> int:
        images: list[int] = []
        run_trunk = sources.run_trunk
        sources.run_trunk = lambda *args, **more: images.append(len(args[1])) or run_trunk(*args, **more)
        shared_run("head-only", out="two", backbone="lenet5", overrides={"cache.views": 2, "cache.features": place})
        return sum(images)

    counts = values(launched(2, work))
    lines = (tmp_path / "two" / "split.csv").read_text().splitlines()[1:]
    num_train, num_val = (sum(line.split(",")[2] == name for line in lines) for name in ("train", "val"))
    assert sum(counts) == 2 * num_train + num_val
    assert min(counts) >= sum(counts) // 2 - 3
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "another"))
    shared_run("head-only", out="one", backbone="lenet5", overrides={"cache.views": 2, "cache.features": place})
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_one_that_fails_ends_the_other_and_the_same_number_goes_on_exactly(shared_run, tmp_path: Path) -> None:
    def begin(rank: int, *, out: str, last: int = 10**6) -> finetune.RunResult:
        taken, take = [0], step.Step.take

        def counted(*args: Any, **more: Any) -> Any:
            taken[0] += 1
            if rank == 1 and taken[0] > last:
                raise DataError("an image is gone")
            return take(*args, **more)

        step.Step.take = counted
        return shared_run("full", out=out, backbone="lenet5", overrides=EVERY_STEP)

    values(launched(2, partial(begin, out="whole")))
    shared_run("full", out="parts", backbone="lenet5", overrides=EVERY_STEP, micro_batch=3)
    assert_same(tmp_path / "whole", tmp_path / "parts", SAME[:2])  # a half in each process is a half at a time in one
    first, second = launched(2, partial(begin, out="stopped", last=2))
    assert isinstance(first.error, ranks.LostProcessError)
    again = f"torchrun --nproc-per-node 2 -m finetune run --resume {tmp_path / 'stopped'}"
    assert first.error.hint.endswith(f"What was done is kept: {again}")
    assert isinstance(second.error, DataError)
    with pytest.raises(finetune.CheckpointError, match="begun by 2 processes, but now there is 1") as refused:
        finetune.resume(tmp_path / "stopped")
    assert f"Start as many: {again}" in refused.value.hint
    values(launched(2, lambda _: finetune.resume(tmp_path / "stopped")))
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_what_is_not_shared_is_refused_by_all_alike(shared_run, tmp_path: Path) -> None:
    def work(rank: int) -> list[str]:
        said = []
        for strategy, more in (("race", {}), ("full", {"batch_size": 1})):
            with pytest.raises(finetune.RecipeError) as refused:
                shared_run(strategy, out="refused", **more)
            said.append(refused.value.message)
        return said

    first, second = values(launched(2, work))
    assert first == second
    assert "race cannot be shared" in first[0]
    assert "a batch of 1 image cannot be split over 2 processes" in first[1]
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("words", [("predict", "run", "images"), ("run", "images", "--seeds", "2")])
def test_other_commands_are_refused_in_one_line(finetune_cli, few: Path, monkeypatch, words: tuple[str, ...]) -> None:
    monkeypatch.setattr("finetune.cli.GRACE", 0.0)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    words = tuple(str(few) if word == "images" else word for word in words)
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        done = finetune_cli(*words)
        assert done.code == 5
        assert done.err.count("has started 2 processes; this command needs one") == (rank == 0)
        assert done.out == ""
        done = finetune_cli("run", "--nonsense")
        assert (done.code, "--nonsense" in done.err) == (2, rank == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("full", {"epochs": 2, "batch_size": 8}),
        ("top-k", {"top_k": 2, "overrides": {"cache.features": "none", "optim.sam": 0.05}}),
        ("lp-ft", {"top_k": 1, "test": 0.2, "refit": True, "overrides": {"cache.views": 2}}),
        ("linear-probe", {"probe_at": "layer2"}),
        ("lora", {"overrides": {"regularise.ema": 0.9}}),
    ],
)
def test_four_processes_end_with_what_one_does(shared_run, tmp_path: Path, strategy: str, more: dict[str, Any]) -> None:
    shared_run(strategy, out="one", **more)
    values(launched(4, lambda _: shared_run(strategy, out="four", **more)))
    assert_alike(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_torchrun_starts_a_run_that_says_everything_once(few: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    flags = ["--strategy", "head-only", "--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "run"), *FLAGS]
    words = [*launcher, "--nproc-per-node", "2", "-m", "finetune", "run", str(few), *flags]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("run folder: ") == 1
    assert done.stdout.count("everything is in ") == 1


@pytest.mark.slow
def test_either_process_killed_at_random_moments_a_shared_run_is_exact() -> None:
    words = [sys.executable, TOOL, "--times", "9", "--seed", "1", "--processes", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "9 of 9 exact" in done.stdout, done.stdout + done.stderr
