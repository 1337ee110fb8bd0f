"""Folds and seeds: ordinary runs in one folder, every image by who has not seen it, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import finetune
from finetune import recipe as recipes
from finetune.checkpoint.saved import load_run
from finetune.evaluation.intervals import wilson
from tests.killing import FOLDERS, die_everywhere
from tests.support import TINY, assert_same, draw_numbers, draw_sets, stop_after, unfinished_files, warned

MORE = {**TINY, "strategy": "full", "epochs": 2}


@pytest.fixture(scope="module")
def three(few: Path, tmp_path_factory: pytest.TempPathFactory) -> finetune.Several:
    """Three folds of 24 images, a few of which are for test."""
    return finetune.run_several(few, folds=3, out=tmp_path_factory.mktemp("folds") / "place", test=0.25, **MORE)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_image_that_is_not_test_is_predicted_once_by_who_has_not_seen_it(three: finetune.Several) -> None:
    rows = rows_of(three.folder / "out_of_fold.csv")
    split = rows_of(three.folder / "split.csv")
    assert Counter(row["file"] for row in rows) == Counter(row["file"] for row in split if row["split"] != "test")
    for row in rows:
        own = {each["file"]: each["split"] for each in rows_of(three.folder / f"runs/fold-{row['fold']}/split.csv")}
        assert own[row["file"]] == "val"
        assert 1 / 6 <= float(row["confidence"]) <= 1
    said = {(row["file"], row["predicted"]) for row in rows}
    for fold in (1, 2, 3):
        own_rows = rows_of(three.folder / f"runs/fold-{fold}/predictions.csv")
        assert {(row["file"], row["predicted"]) for row in own_rows if row["split"] == "val"} <= said
    right = sum(row["class"] == row["predicted"] for row in rows)
    assert three.out_of_fold["top1"] == wilson(right / len(rows), len(rows))


def test_what_joins_folds_is_measured_on_images_that_none_has_seen_or_not_at_all(three: finetune.Several) -> None:
    with pytest.raises(finetune.DataError, match=r"joins folds, trained on 6 of the 6 images of val") as refused:
        finetune.evaluate(three.folder, split="val")
    assert "out_of_fold.csv" in refused.value.hint
    assert finetune.evaluate(three.folder).split == "test"
    own = three.folder / "runs" / "fold-1"
    _, told = warned(finetune.evaluate, own, split="val")
    assert not told


def test_the_mean_is_that_of_the_runs_and_the_file_answers_as_all_of_them(three: finetune.Several) -> None:
    own = [json.loads((three.folder / f"runs/fold-{n}/metrics.json").read_text()) for n in (1, 2, 3)]
    for split in ("val", "test"):
        assert three.mean[split]["top1"].value == pytest.approx(np.mean([one[split]["top1"]["value"] for one in own]))
        assert 0 <= three.mean[split]["top1"].low <= three.mean[split]["top1"].high <= 1
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        rows = [load_run(three.folder / f"runs/fold-{n}", device="cpu").backbone.model(images).softmax(dim=1)
                for n in (1, 2, 3)]  # fmt: skip
    session = onnxruntime.InferenceSession(str(three.folder / "exports" / "model.onnx"))
    found = np.exp(session.run(None, {"images": images.numpy()})[0])
    assert np.allclose(found / found.sum(axis=1, keepdims=True), torch.stack(rows).mean(dim=0).numpy(), atol=1e-5)
    test = [row for row in rows_of(three.folder / "split.csv") if row["split"] == "test"]
    assert len(test) == 6 and three.ensemble["top1"].value * 6 == pytest.approx(round(three.ensemble["top1"].value * 6))


def test_a_fold_is_a_run_that_its_recipe_repeats(three: finetune.Several, tmp_path: Path) -> None:
    inside = three.folder / "runs" / "fold-2"
    again = finetune.run(recipe=inside / "recipe.toml", out=tmp_path / "again")
    for name in ("model/model.safetensors", "metrics.json", "metrics.jsonl", "predictions.csv", "split.csv"):
        assert (again.folder / name).read_bytes() == (inside / name).read_bytes(), name


def test_seeds_differ_in_their_seed_alone_and_have_the_same_split(few: Path, tmp_path: Path) -> None:
    found = finetune.run_several(few, seeds=2, seed=5, out=tmp_path / "s", **MORE)
    folders = [tmp_path / "s" / "runs" / name for name in ("seed-5", "seed-6")]
    loaded = [recipes.load(folder / "recipe.toml") for folder in folders]
    assert recipes.update(loaded[0], {"train.seed": 6}) == loaded[1]
    assert (folders[0] / "split.csv").read_bytes() == (folders[1] / "split.csv").read_bytes()
    assert (folders[0] / "model/model.safetensors").read_bytes() != (
        folders[1] / "model/model.safetensors"
    ).read_bytes()
    alone = finetune.run(few, seed=6, out=tmp_path / "alone", **MORE)
    assert_same(alone.folder, folders[1])
    assert found.mean["val"]["top1"].value == pytest.approx(
        np.mean([values["val"]["top1"].value for values in found.runs.values()])
    )
    assert not (tmp_path / "s" / "exports").exists() and found.out_of_fold == {}


def test_stopped_folds_go_on_and_end_as_those_that_were_not(few: Path, tmp_path: Path) -> None:
    whole = finetune.run_several(few, folds=2, out=tmp_path / "whole", **MORE)
    with pytest.raises(finetune.Interrupted) as stopped:  # in the second run
        finetune.run_several(few, folds=2, out=tmp_path / "stopped", on_event=stop_after(6), **MORE)
    assert stopped.value.hint == f"Resume with: finetune run --resume {tmp_path / 'stopped'}"
    first = tmp_path / "stopped" / "runs" / "fold-1" / "metrics.json"
    written = first.stat().st_mtime_ns
    with pytest.raises(finetune.CheckpointError, match="is a set, not a run"):
        finetune.resume(tmp_path / "stopped")
    with pytest.raises(finetune.CheckpointError, match="is a set of several runs"):
        finetune.load(tmp_path / "stopped")
    found = finetune.resume_several(tmp_path / "stopped")
    assert first.stat().st_mtime_ns == written
    assert (found.mean, found.out_of_fold) == (whole.mean, whole.out_of_fold)
    for name in ("runs/fold-1", "runs/fold-2"):
        assert_same(whole.folder / name, found.folder / name)
    page = (found.folder / "report.html").read_text()
    assert page == (whole.folder / "report.html").read_text().replace(str(whole.folder), str(found.folder))
    assert "runs/fold-2/report.html" in page and f"{found.mean['val']['top1'].value:.3f}" in page
    for name in ("out_of_fold.csv", "split.csv"):
        assert (whole.folder / name).read_bytes() == (found.folder / name).read_bytes()
    with pytest.raises(finetune.CheckpointError, match="is finished"):
        finetune.resume_several(tmp_path / "stopped")


@pytest.mark.slow
def test_folds_killed_at_every_kind_of_point_end_as_those_that_were_not(few: Path, tmp_path: Path) -> None:
    def begin(out: str) -> finetune.Several:
        return finetune.run_several(few, folds=2, out=tmp_path / out, **MORE)

    whole, killed = begin("whole"), tmp_path / "killed"
    found = die_everywhere(
        lambda: begin("killed"), killed, spared=("os.rename", *FOLDERS), go_on=finetune.resume_several
    )
    assert all(ended.signal == signal.SIGKILL for ended in found), [one.said for one in found if not one.signal]
    assert len(found) > 20
    assert unfinished_files(killed) == []
    for name in ("runs/fold-1", "runs/fold-2"):
        assert_same(whole.folder / name, killed / name)
    assert (whole.folder / "out_of_fold.csv").read_bytes() == (killed / "out_of_fold.csv").read_bytes()


@pytest.mark.parametrize(("draw", "column", "score"), [(draw_sets, "label", "mAP"), (draw_numbers, "length", "r2")])
def test_sets_of_classes_and_numbers_have_folds_too(draw, column: str, score: str, tmp_path: Path) -> None:
    table = draw(tmp_path / "imgs", count=40)
    more = {"export.onnx_at_end": False, "data.label_column": column}
    found = finetune.run_several(table, folds=2, out=tmp_path / "f", overrides=more, **MORE)
    assert score in found.out_of_fold and score in found.mean["val"]
    assert not found.is_exported and not (tmp_path / "f" / "exports").exists()
    rows = rows_of(tmp_path / "f" / "out_of_fold.csv")
    assert len(rows) == 40
    assert ("probability of red" in rows[0]) == (score == "mAP")


def test_what_cannot_be_is_refused_before_anything_is_run(few: Path, tmp_path: Path) -> None:
    for asked, said in (
        ({}, "by folds or by seeds"),
        ({"folds": 2, "seeds": 2}, "by folds or by seeds"),
        ({"folds": 1}, "folds = 1: must be a whole number of 2 or more"),
        ({"folds": 2, "refit": True}, "train.refit has no meaning with folds"),
    ):
        with pytest.raises(finetune.RecipeError, match=said):
            finetune.run_several(few, out=tmp_path / "f", **asked, **MORE)
    with pytest.raises(finetune.RecipeError, match=r"split.fold = 3 is not one of split.folds = 2"):
        finetune.run(few, out=tmp_path / "f", overrides={"split.folds": 2, "split.fold": 3}, **MORE)
    with pytest.raises(finetune.RecipeError, match=r"split.val has no meaning with split.folds"):
        finetune.run(few, out=tmp_path / "f", val=0.5, overrides={"split.folds": 2}, **MORE)
    with pytest.raises(finetune.DataError, match="divided into 9 folds"):
        finetune.run_several(few, folds=9, out=tmp_path / "f", **MORE)
    assert not (tmp_path / "f").exists()


def test_a_seed_that_fails_is_told_and_tried_again(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.runs import shared

    started = shared.start

    def failing(recipe: finetune.Recipe, **more: object) -> finetune.RunResult:
        if recipe.train.seed == 1:
            raise finetune.TrainingError("the loss is nan")
        return started(recipe, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(shared, "start", failing)
        found = finetune.run_several(few, seeds=3, out=tmp_path / "s", **MORE)
    assert found.failed == {"seed-1": "the loss is nan"} and set(found.runs) == {"seed-0", "seed-2"}
    again = finetune.resume_several(tmp_path / "s")
    assert again.failed == {} and set(again.runs) == {"seed-0", "seed-1", "seed-2"}
