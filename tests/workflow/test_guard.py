"""Memory that runs out and workers that die, at other places than a step of training: one error with the way out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.features import cache, sources
from finetune.prepare import passes
from finetune.runs import single as run
from tests.support import QUICK, TINY

Do = Callable[[Path, Path], object]  # with data, and an unfinished place for a run
SMALL = {key: value for key, value in QUICK.items() if key != "workers"}

PASSES: dict[str, Do] = {
    "run": lambda data, out: finetune.run(
        data, strategy="head-only", epochs=2, out=out, overrides={"cache.views": 2}, **{**TINY, "workers": 1}
    ),
    "evidence": lambda data, out: finetune.run(
        data, strategy="auto", out=out, **{**SMALL, "backbone": "test_resnet", "workers": 1}
    ),
    "plan": lambda data, _: finetune.plan(data, **{**SMALL, "backbone": "test_resnet", "workers": 1}),
    "check": lambda data, _: finetune.check(data, **{**SMALL, "backbone": "test_resnet", "workers": 1}),
    "rank": lambda data, _: finetune.rank(
        data, ["test_resnet"], image_size=64, workers=1, device="cpu", overrides={"backbone.pretrained": False}
    ),
}


def runs_out(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def kills_workers(*_: object, **__: object) -> Any:
    """Compute for a while, and meanwhile the workers die."""
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
    time.sleep(20)
    raise AssertionError("no word of the workers")


@pytest.mark.parametrize("where", PASSES)
def test_memory_that_runs_out_in_a_pass_is_told(monkeypatch, few: Path, tmp_path: Path, where: str) -> None:
    monkeypatch.setattr(sources, "run_trunk", runs_out)
    with pytest.raises(finetune.FinetuneError, match="memory ran out") as failed:
        PASSES[where](few, tmp_path / "run")
    assert "--image-size" in failed.value.hint
    assert "--device cpu" in failed.value.hint
    assert ("--micro-batch" in failed.value.hint) == (where in ("run", "evidence"))
    assert ("--resume" in failed.value.hint) == (where == "run")


@pytest.mark.parametrize("where", PASSES)
def test_workers_that_die_in_a_pass_are_told(monkeypatch, few: Path, tmp_path: Path, where: str) -> None:
    monkeypatch.setattr(sources, "run_trunk", kills_workers)
    monkeypatch.setattr(cache, "FEWEST_IN_ONE_PASS", 1)
    with pytest.raises(finetune.FinetuneError, match="a process that decodes images died") as failed:
        PASSES[where](few, tmp_path / "run")
    assert "--workers 0" in failed.value.hint


def test_memory_that_runs_out_in_the_evaluation_of_a_run_is_told_and_the_run_goes_on(
    monkeypatch, tiny_run, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run, "collect_logits", runs_out)
        with pytest.raises(finetune.ResourceError, match="memory ran out") as failed:
            tiny_run()
    assert "--micro-batch" in failed.value.hint
    assert f"--resume {tmp_path / 'run'} --allow recipe" in failed.value.hint
    resumed = finetune.resume(tmp_path / "run", micro_batch=4, allow=["recipe"])
    assert resumed.metrics["val"]


def test_memory_that_runs_out_in_eval_names_a_smaller_batch(monkeypatch, finished: Path) -> None:
    monkeypatch.setattr(passes, "collect_logits", runs_out)
    with pytest.raises(finetune.ResourceError, match="memory ran out") as failed:
        finetune.evaluate(finished)
    assert "--batch-size" in failed.value.hint


def test_memory_that_runs_out_in_predict_names_a_smaller_batch(monkeypatch, finished: Path, few: Path) -> None:
    loaded = finetune.load(finished)
    monkeypatch.setattr(loaded, "model", runs_out)
    with pytest.raises(finetune.ResourceError, match="memory ran out") as failed:
        loaded.predict(few)
    assert "--batch-size" in failed.value.hint


def test_workers_that_die_in_eval_are_told_and_can_be_left_out(monkeypatch, finished: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(passes, "collect_logits", lambda _, batches, **__: kills_workers(next(batches)))
        with pytest.raises(finetune.ResourceError, match="a process that decodes images died") as failed:
            finetune.evaluate(finished, workers=1)
    assert "--workers 0" in failed.value.hint
    assert finetune.evaluate(finished, workers=0).num_images


def test_other_errors_stay_what_they_are(monkeypatch, finished: Path) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(passes, "collect_logits", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        finetune.evaluate(finished)
