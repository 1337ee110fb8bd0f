"""The refit: the same numbers on train and val, and figures that say which fit they are of."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune import recipe as recipes
from finetune.checkpoint.saved import load_run
from finetune.data import split
from finetune.train import delivery
from tests.killing import FOLDERS, die_everywhere
from tests.support import assert_same, stop_after, unfinished_files

SAME = ("model/model.safetensors", "metrics.json", "metrics.jsonl", "predictions.csv", "refit/metrics.jsonl")
TINY = {"epochs": 3, "test": 0.2, "refit": True}
MORE = {"image_size": 32, "epochs": 4, "test": 0.2, "refit": True}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def refitted(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refitted top-k run on the drawn set, which would deliver the first of its four epochs."""
    place = tmp_path_factory.mktemp("refitted") / "run"
    quick = {"batch_size": 16, "workers": 0, "device": "cpu", "pretrained": False, "backbone": "test_resnet"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(delivery, "delivered", lambda history, num_val: 1)
        made = finetune.run(drawn, strategy="top-k", out=place, calibrate=False, **quick, **MORE)
        assert made.delivered_epoch == 1
    return place


def test_the_refit_trains_as_many_epochs_as_would_be_delivered_on_the_same_schedule(refitted: Path) -> None:
    first, again = lines(refitted / "metrics.jsonl"), lines(refitted / "refit" / "metrics.jsonl")
    assert (len(first), len(again)) == (4, 1)
    assert all(row["val_top1"] is None and row["val_loss"] is None for row in again)
    # the last step of an epoch lies at nearly the same place of the schedule: there are more steps now
    assert [row["lr"] for row in again] == pytest.approx([row["lr"] for row in first[:1]], rel=0.15)


def test_figures_say_which_fit_they_are_of(refitted: Path) -> None:
    metrics = json.loads((refitted / "metrics.json").read_text())
    assert list(metrics) == ["val, first fit", "test, first fit", "test"]
    found = finetune.evaluate(refitted)
    assert (found.split, found.metrics["top1"].value) == ("test", metrics["test"]["top1"]["value"])
    page = (refitted / "report.html").read_text()
    assert "The model is a <b>refit</b>" in page and "val can no longer measure it" in page


def test_the_delivered_model_is_the_refit_and_saw_train_and_val(refitted: Path) -> None:
    delivered = load_file(refitted / "model" / "model.safetensors")
    last = load_file(refitted / "refit" / "checkpoints" / "last" / "model.safetensors")
    best = load_file(refitted / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(delivered[key], last[key]) for key in delivered)
    assert any(not torch.equal(delivered[key], best[key]) for key in delivered)
    manifest = load_run(refitted, device="cpu").manifest()
    assert {sample.split for sample in manifest.samples} == {"train", "test"}


def test_val_does_not_measure_a_refit(refitted: Path) -> None:
    with pytest.raises(finetune.DataError, match="refitted on train and val"):
        finetune.evaluate(refitted, split="val")


def test_a_refit_takes_train_and_val_leaves_test_and_keeps_what_is_frozen(refitted: Path) -> None:
    recipe = recipes.load(refitted / "recipe.toml")
    classes = json.loads((refitted / "plan.json").read_text())["classes"]
    manifest = split.read(refitted / "split.csv", root=recipe.data.path, classes=classes)
    joined = split.val_in_train(manifest)
    assert {s.file for s in joined.split("train")} == {s.file for n in ("train", "val") for s in manifest.split(n)}
    assert joined.split("test") == manifest.split("test")
    delivered = load_file(refitted / "model" / "model.safetensors")
    best = load_file(refitted / "checkpoints" / "best" / "model.safetensors")
    frozen = [key for key in delivered if key.startswith(("conv1", "bn1", "layer1", "layer2", "layer3"))]
    assert frozen and all(torch.equal(delivered[key], best[key]) for key in frozen)


@pytest.mark.parametrize(("strategy", "steps"), [pytest.param("top-k", 2, marks=pytest.mark.slow), ("full", -2)])
def test_a_stopped_refit_goes_on_to_the_same_bits(quick_run, tmp_path: Path, strategy: str, steps: int) -> None:
    seen: list[int] = []
    whole = quick_run(strategy, out="whole", on_event=lambda event: seen.append(event.kind == "step"), **MORE)
    at = steps if steps > 0 else sum(seen) + steps  # from the end: inside the refit
    with pytest.raises(finetune.Interrupted) as stopped:
        quick_run(strategy, out="stopped", on_event=stop_after(at), **MORE)
    assert stopped.value.hint.endswith(f"--resume {tmp_path / 'stopped'}")
    if steps < 0:
        assert (tmp_path / "stopped" / "refit" / "checkpoints" / "last").is_dir()
    finetune.resume(tmp_path / "stopped")
    assert_same(whole.folder, tmp_path / "stopped", SAME)


@pytest.mark.slow
def test_a_refit_killed_at_every_kind_of_point_ends_as_if_never_killed(tiny_run, tmp_path: Path) -> None:
    whole = tiny_run("full", out="whole", **TINY).folder
    killed = tmp_path / "killed"
    found = die_everywhere(lambda: tiny_run("full", out="killed", **TINY), killed, spared=("os.rename", *FOLDERS))
    assert all(ended.signal == signal.SIGKILL for ended in found), [one.said for one in found if not one.signal]
    assert any("refit/.metrics.jsonl.new" in ended.points[-1] for ended in found)
    assert_same(whole, killed, SAME)
    assert unfinished_files(killed) == []


def test_without_a_test_split_the_figures_are_the_first_fits_and_the_export_is_proven(quick_run) -> None:
    result = quick_run("linear-probe", image_size=32, refit=True)
    assert list(result.metrics) == ["val, first fit"]
    with pytest.raises(finetune.DataError, match="refitted"):
        finetune.evaluate(result.folder)
    assert finetune.export(result.folder, format="timm").proof["is_proven"]
    assert "nothing measures the refit" in (result.folder / "report.html").read_text()


@pytest.mark.slow
def test_a_race_can_be_refitted(quick_run) -> None:
    result = quick_run("race", **MORE)
    assert "test" in result.metrics and "val, first fit" in result.metrics
