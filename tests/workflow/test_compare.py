"""A comparison: same images, one run folder each, stopped and gone on with, failures beside results."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune import recipe as recipes
from finetune.checkpoint.claim import claimed
from finetune.checkpoint.comparison import Clock, seconds_by_epoch
from finetune.checkpoint.run_folder import RunFolder
from finetune.evaluation.intervals import wilson
from finetune.report.standings import CurvePoint, Finished, finished, sentences, standings
from finetune.types import Event
from finetune.workflow import compare
from tests.killing import FOLDERS, die_everywhere
from tests.support import TINY, assert_same, stop_after

QUICK = {"image_size": 32, "batch_size": 16, "workers": 0, "device": "cpu", "backbone": "test_resnet", "epochs": 2}


@pytest.fixture(scope="module")
def compared(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> finetune.Comparison:
    """Three strategies on one seed, one of which cannot be: this network has five layer groups."""
    place = tmp_path_factory.mktemp("compared") / "place"
    who = ["head-only", "top-k:99", "linear-probe:layer3"]
    return finetune.compare(drawn, strategies=who, test=0.2, pretrained=False, out=place, **QUICK)


def run(label: str, hits: str, *, seed: int = 0, trained: int = 1, top1: tuple[float, ...] = (0.5,)) -> Finished:
    curve = tuple(CurvePoint(epoch, value, val_loss=1.0, seconds=2.0 * epoch) for epoch, value in enumerate(top1, 1))
    said, right = np.array(list(hits)), np.array(["+"] * len(hits))
    return Finished(seed, label, "test", tuple(map(str, range(len(hits)))), said, right, 1, trained, curve)


def test_a_comparison_has_figures_that_follow_from_the_predictions(compared: finetune.Comparison) -> None:
    assert compared.split == "test"
    for one in compared.standings:
        folder = compared.folder / "runs" / f"{one.label.replace(':', '-')}-seed0"
        rows = list(csv.DictReader((folder / "predictions.csv").open()))
        test = [row for row in rows if row["split"] == "test"]
        assert len(test) == compared.num_images
        right = sum(row["class"] == row["predicted"] for row in test)
        assert one.score == wilson(right / len(test), len(test))
        metrics = json.loads((folder / "metrics.json").read_text())
        assert one.score.value == metrics["test"]["top1"]["value"]
    assert compared.standings[0].difference is None
    assert compared.standings[1].difference is not None


def test_a_strategy_that_fails_is_told_and_the_others_go_on(compared: finetune.Comparison) -> None:
    assert {one.label for one in compared.standings} == {"head-only", "linear-probe:layer3"}
    assert [(one.strategy, "5 layer groups" in one.reason) for one in compared.failed] == [("top-k:99", True)]
    page = (compared.folder / "compare.html").read_text()
    assert "top-k:99" in page and "has 5 layer groups" in page


def test_the_page_opens_offline_and_holds_four_pictures_with_every_run(compared: finetune.Comparison) -> None:
    page = (compared.folder / "compare.html").read_text()
    assert "http" not in page and "<script" not in page
    pictures = [ET.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in page.split("<svg")[1:]]
    assert len(pictures) == 4
    assert [len(picture.findall("polyline")) for picture in pictures] == [2] * 4


def test_a_run_of_a_comparison_is_the_run_alone(compared: finetune.Comparison, drawn: Path, tmp_path: Path) -> None:
    alone = finetune.run(drawn, strategy="head-only", test=0.2, pretrained=False, out=tmp_path / "alone", **QUICK)
    inside = compared.folder / "runs" / "head-only-seed0"
    for name in ("model/model.safetensors", "metrics.json", "metrics.jsonl", "predictions.csv", "split.csv"):
        assert (alone.folder / name).read_bytes() == (inside / name).read_bytes(), name


def test_a_failed_strategy_is_tried_again_and_finished_ones_are_not(compared: finetune.Comparison) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.folder.glob("runs/*/metrics.json")}
    again = finetune.resume_comparison(compared.folder)
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [one.label for one in again.standings] == [one.label for one in compared.standings]
    assert again.failed == compared.failed


def test_a_stopped_comparison_goes_on_and_ends_as_one_that_was_not(few: Path, tmp_path: Path) -> None:
    more = {"strategies": ["head-only", "full"], "seeds": 2, **TINY, "epochs": 2}
    whole = finetune.compare(few, out=tmp_path / "whole", **more)
    with pytest.raises(finetune.Interrupted) as stopped:  # in the second run
        finetune.compare(few, out=tmp_path / "stopped", on_event=stop_after(8), **more)
    assert stopped.value.exit_code == 143
    assert stopped.value.hint == f"Resume with: finetune compare --resume {tmp_path / 'stopped'}"
    first = tmp_path / "stopped" / "runs" / "head-only-seed0" / "metrics.json"
    assert first.is_file() and len(list((tmp_path / "stopped").glob("runs/*/metrics.json"))) < 4
    written = first.stat().st_mtime_ns
    found = finetune.resume_comparison(tmp_path / "stopped")
    assert first.stat().st_mtime_ns == written
    facts = [[(one.label, one.seeds, one.score, one.difference) for one in each.standings] for each in (whole, found)]
    assert facts[0] == facts[1]
    with pytest.raises(finetune.CheckpointError, match="is finished"):
        finetune.resume_comparison(tmp_path / "stopped")


@pytest.mark.slow
def test_a_comparison_killed_at_every_kind_of_point_ends_as_one_that_was_not(few: Path, tmp_path: Path) -> None:
    def begin(out: str) -> finetune.Comparison:
        return finetune.compare(few, strategies=["head-only", "full"], out=tmp_path / out, **{**TINY, "epochs": 2})

    whole, killed = begin("whole"), tmp_path / "killed"
    found = die_everywhere(
        lambda: begin("killed"), killed, spared=("os.rename", *FOLDERS), go_on=finetune.resume_comparison
    )
    assert all(ended.signal == signal.SIGKILL for ended in found), [one.said for one in found if not one.signal]
    assert len(found) > 20
    told = [json.loads((folder / "compare.json").read_text()) for folder in (whole.folder, killed)]
    facts = [[(one["label"], one["score"], one["difference"]) for one in content["standings"]] for content in told]
    assert facts[0] == facts[1] and told[1]["failed"] == {}
    for name in ("head-only-seed0", "full-seed0"):
        assert_same(whole.folder / "runs" / name, killed / "runs" / name)


@pytest.fixture
def stopped(few: Path, tmp_path: Path) -> Path:
    """A comparison on images of its own that was stopped in its second run."""
    own = Path(shutil.copytree(few, tmp_path / "own"))
    with pytest.raises(finetune.Interrupted):
        finetune.compare(
            own, strategies=["head-only", "full"], out=tmp_path / "c", on_event=stop_after(8), **{**TINY, "epochs": 2}
        )
    return tmp_path / "c"


def test_a_comparison_whose_images_changed_is_refused_until_it_is_allowed(stopped: Path, tmp_path: Path) -> None:
    recipe = recipes.load(stopped / "recipe.toml")
    rows = list(csv.DictReader((stopped / "split.csv").open()))
    (tmp_path / "own" / next(row["file"] for row in rows if row["split"] == "train")).unlink()
    with pytest.raises(finetune.CheckpointError, match="1 gone") as refused:
        finetune.resume_comparison(stopped)
    assert f"finetune compare --resume {stopped} --allow data" in refused.value.hint
    assert json.loads((stopped / "compare.json").read_text())["failed"] == {}
    assert finetune.resume_comparison(stopped, allow=["data"]).failed == ()
    assert recipes.load(stopped / "recipe.toml") == recipe


def test_the_recipe_of_a_comparison_cannot_change(stopped: Path) -> None:
    file = stopped / "recipe.toml"
    file.write_text(recipes.dump(recipes.update(recipes.load(file), {"optim.lr": 0.5})))
    with pytest.raises(finetune.CheckpointError, match="cannot change within a comparison"):
        finetune.resume_comparison(stopped, allow=["recipe"])


def test_a_comparison_is_resumed_as_one_and_by_one(stopped: Path, monkeypatch) -> None:
    with pytest.raises(finetune.CheckpointError, match="is a comparison") as refused:
        finetune.resume(stopped)
    assert f"finetune compare --resume {stopped}" in refused.value.hint
    monkeypatch.setattr(compare, "LINGER", 0)
    with claimed(RunFolder(stopped), seconds=0), pytest.raises(finetune.ResourceError, match="another process"):
        finetune.resume_comparison(stopped)


@pytest.mark.parametrize("changed", [{"seeds": []}, {"classes": 3}, {"format_version": 2}, {"failed": []}])
def test_a_comparison_that_is_told_wrong_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    content = {
        "format_version": 1, "strategies": ["full", "head-only"], "seeds": [0], "classes": ["a"], "data": "",
        "failed": {}, "standings": None,
    }  # fmt: skip
    for damaged in (json.dumps({**content, **changed}), "[]", "{"):
        (tmp_path / "compare.json").write_text(damaged)
        with pytest.raises(finetune.CheckpointError, match=r"compare\.json"):
            finetune.resume_comparison(tmp_path)


def test_a_run_of_a_stopped_comparison_is_an_ordinary_one(stopped: Path) -> None:
    finetune.resume(stopped / "runs" / "full-seed0")
    assert len(finetune.resume_comparison(stopped).standings) == 2


def test_a_comparison_of_failures_alone_is_an_error(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(finetune.RecipeError, match="has 5 layer groups"):
        finetune.compare(drawn, strategies=["top-k:98", "top-k:99"], pretrained=False, out=tmp_path / "c", **QUICK)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(finetune.CheckpointError, match=r"no compare\.json"):
        finetune.resume_comparison(tmp_path)


def test_the_best_is_first_and_of_equals_the_smaller() -> None:
    found = standings({"a": [run("a", "++--", trained=9)], "b": [run("b", "--++", trained=3)], "c": []})
    assert [one.label for one in found] == ["b", "a"]
    assert found[1].difference is not None and found[1].difference.value == 0
    assert not found[1].is_told_apart


def test_what_is_told_apart_is_said() -> None:
    near = standings({"a": [run("a", "+" * 60 + "-" * 40)], "b": [run("b", "+" * 58 + "-" * 42)]})
    assert sentences(near, is_pretrained=True)[1] == "cannot be told apart from it on these images: b"
    far = standings({"a": [run("a", "+" * 60 + "-" * 40)], "b": [run("b", "+" * 20 + "-" * 80)]})
    assert far[1].is_told_apart
    assert sentences(far, is_pretrained=True) == [
        "a is best with 0.600, and better than each of the others beyond chance"
    ]


def test_differences_are_taken_on_the_seeds_that_both_have() -> None:
    one = [run("a", "+++-", seed=0), run("a", "++++", seed=1)]
    found = standings({"a": one, "b": [run("b", "+---", seed=0)]})
    assert found[1].difference is not None and found[1].difference.value == 0.5


def test_two_seeds_are_said_to_be_few() -> None:
    def said(count: int) -> list[str]:
        return sentences(
            standings({label: [run(label, "+-", seed=seed) for seed in range(count)] for label in "ab"}),
            is_pretrained=True,
        )

    assert "two seeds say little" in said(2)[-1]
    assert not any("seeds" in text for count in (1, 3) for text in said(count))


def test_runs_on_other_images_are_not_compared() -> None:
    with pytest.raises(finetune.CheckpointError, match="different images"):
        standings({"a": [run("a", "++")], "b": [run("b", "+++")]})


def test_the_way_of_pretraining_is_told_against_scratch() -> None:
    full = run("full", "+" * 50 + "-" * 50, top1=(0.6, 0.9, 0.9))
    scratch = run("scratch", "+" * 49 + "-" * 51, top1=(0.1, 0.2, 0.3, 0.4, 0.6))
    text = sentences(standings({"full": [full], "scratch": [scratch]}), is_pretrained=True)[-1]
    assert "0.600, after 1 epoch (2 s); scratch after 5 epochs (10 s)" in text
    assert "no higher beyond chance" in text
    assert len(sentences(standings({"full": [full], "scratch": [scratch]}), is_pretrained=False)) == 2


def test_a_clock_goes_on_where_it_stood_and_leaves_half_a_line_out(tmp_path: Path) -> None:
    file = tmp_path / "clocks" / "a.jsonl"
    Clock(file)(Event("epoch", {"epoch": 1}))
    with file.open("a") as stream:
        stream.write('{"epoch": 2, "seconds": 100.0}\n{"epoch": 3, "sec')
    with file.open("a") as stream:
        stream.write("\n")
    Clock(file)(Event("epoch", {"epoch": 3}))
    found = seconds_by_epoch(file)
    assert set(found) == {1, 2, 3}
    assert found[3] >= 100


def test_copies_and_groups_are_no_more_evidence_than_one_of_them() -> None:
    hits = {"a": "++++++++----", "b": "++++--------"}
    alone = standings({label: [run(label, found)] for label, found in hits.items()})
    units = tuple(place // 4 for place in range(12))
    grouped = standings({label: [replace(run(label, found), units=units)] for label, found in hits.items()})
    for one, same in zip(alone, grouped, strict=True):
        assert same.score.value == one.score.value
        assert same.score.low < one.score.low and same.score.high > one.score.high
    assert grouped[1].difference.low < alone[1].difference.low


def test_a_finished_run_tells_which_of_its_images_are_of_one_group(compared: finetune.Comparison) -> None:
    folder = RunFolder(compared.folder / "runs" / "head-only-seed0")
    rows = list(csv.DictReader(folder.split.open()))
    judged = {row["file"] for row in rows if row["split"] == "test"}
    twins = sorted(judged)[:2]
    with_groups = [{**row, "group": "g" if row["file"] in twins else ""} for row in rows]
    kept = folder.split.read_text()
    try:
        with folder.split.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(with_groups)
        found = finished(folder, compared.folder / "nowhere", seed=0)
    finally:
        folder.split.write_text(kept)
    assert len(set(found.units)) == len(judged) - 1
    assert len({unit for unit, file in zip(found.units, found.files, strict=True) if file in twins}) == 1
