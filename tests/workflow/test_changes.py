"""Resume says what changed since a run began, and refuses until it is told which kind of change is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import finetune
from finetune import cache_entries
from finetune import recipe as recipes
from finetune.checkpoint import changes
from finetune.data import scan_memory
from finetune.runs import training
from tests.support import assert_same, stop_after


@pytest.fixture
def own(few: Path, tmp_path: Path) -> Path:
    """Images that a test may change."""
    return Path(shutil.copytree(few, tmp_path / "own"))


@pytest.fixture
def stopped(tiny_run, own: Path, tmp_path: Path) -> Path:
    """A run that was stopped at its second step."""

    with pytest.raises(finetune.Interrupted):
        tiny_run(data=own, on_event=stop_after(2))
    return tmp_path / "run"


def add(own: Path, taken: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(taken.with_name("new.png"))


def alter(own: Path, taken: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(taken)


def remove(own: Path, taken: Path) -> None:
    taken.unlink()


def damage(own: Path, taken: Path) -> None:
    taken.write_bytes(b"no image")


def relabel(own: Path, taken: Path) -> None:
    other = next(folder for folder in sorted(own.iterdir()) if folder != taken.parent)
    taken.rename(other / f"moved-{taken.name}")


DATA: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "added": (add, "1 added"),
    "changed": (alter, "1 changed"),
    "gone": (remove, "1 gone"),
    "damaged": (damage, "1 gone or unreadable"),
    "moved": (relabel, "1 gone"),
}


@pytest.mark.parametrize("name", DATA)
def test_changed_data_is_named_and_refused_and_goes_on_when_allowed(name: str, stopped: Path, own: Path) -> None:
    change, words = DATA[name]
    taken = sorted(own.rglob("*.jpg") or own.rglob("*"))[0]
    change(own, taken)
    with pytest.raises(finetune.CheckpointError, match=words) as refused:
        finetune.resume(stopped)
    assert "--allow data" in refused.value.hint
    with pytest.raises(finetune.CheckpointError, match=words):
        finetune.resume(stopped, allow=["version", "recipe"])
    finetune.resume(stopped, allow=["data"])
    assert words in (stopped / "report.html").read_text()
    listed = (stopped / "split.csv").read_text()
    assert (str(taken.relative_to(own)) in listed) is (name in ("added", "changed"))
    assert "new.png" not in listed


def test_data_without_a_class_that_the_run_began_with_is_refused_whatever_is_allowed(stopped: Path, own: Path) -> None:
    first = sorted(folder for folder in own.iterdir() if folder.is_dir())[0]
    first.rename(own / "renamed")
    with pytest.raises(finetune.DataError, match=f"no train image of '{first.name}' is left"):
        finetune.resume(stopped, allow=["data"])
    (own / "renamed").rename(first)
    finetune.resume(stopped)


def test_data_that_was_put_back_is_no_change(stopped: Path, own: Path) -> None:
    taken = sorted(own.rglob("*.jpg"))[0]
    content = taken.read_bytes()
    taken.unlink()
    with pytest.raises(finetune.CheckpointError):
        finetune.resume(stopped)
    taken.write_bytes(content)
    finetune.resume(stopped)
    assert json.loads((stopped / "began.json").read_text())["allowed"] == []


def test_data_that_moved_as_a_whole_is_no_change_and_found_from_any_folder(
    stopped: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.rename(tmp_path / "elsewhere")
    with pytest.raises(finetune.DataError, match=r"is not in .*own any more") as refused:
        finetune.resume(stopped)
    assert refused.value.hint.endswith(f"finetune run --resume {stopped} --data NEW")
    monkeypatch.chdir(tmp_path)
    finetune.resume(stopped, data="elsewhere")
    monkeypatch.chdir(own.parent.parent)
    assert finetune.evaluate(stopped, device="cpu").num_images
    assert json.loads((stopped / "began.json").read_text())["allowed"] == []


def test_another_version_is_named_and_refused_and_goes_on_when_allowed(stopped: Path, monkeypatch) -> None:
    now = {**changes.versions(), "torch": "1.0"}
    monkeypatch.setattr(changes, "versions", lambda: now)
    with pytest.raises(finetune.CheckpointError, match=r"the software changed .*: torch .* -> 1\.0") as refused:
        finetune.resume(stopped)
    assert "--allow version" in refused.value.hint
    said: list[str] = []
    finetune.resume(stopped, allow=["version"], on_event=lambda event: said.append(str(event.facts.get("text"))))
    assert any("-> 1.0 (allowed" in text for text in said)


def test_the_tools_own_code_is_a_version(monkeypatch, tmp_path: Path) -> None:
    before = changes.versions()
    changes.versions.cache_clear()
    (tmp_path / "finetune" / "workflow").mkdir(parents=True)
    monkeypatch.setattr(changes, "__file__", str(tmp_path / "finetune" / "workflow" / "changes.py"))
    other = changes.versions()
    changes.versions.cache_clear()
    assert [name for name in before if before[name] != other[name]] == ["finetune's code"]


def test_an_edited_recipe_is_named_and_refused_and_goes_on_when_allowed(stopped: Path) -> None:
    file = stopped / "recipe.toml"
    edited = recipes.update(recipes.load(file), {"optim.lr": 0.5, "train.epochs": 3})
    file.write_text(recipes.dump(edited))
    with pytest.raises(finetune.CheckpointError, match=r"train.epochs 2 -> 3, optim.lr [\d.]+ -> 0.5"):
        finetune.resume(stopped)
    finetune.resume(stopped, allow=["recipe"])
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_flag_with_resume_is_a_change_of_the_recipe(stopped: Path) -> None:
    with pytest.raises(finetune.CheckpointError, match=r"optim.lr .* -> 0.25") as refused:
        finetune.resume(stopped, lr=0.25)
    assert "--allow recipe" in refused.value.hint
    finetune.resume(stopped, overrides={"optim.lr": 0.25}, allow=["recipe"])
    assert recipes.load(stopped / "recipe.toml").optim.lr == 0.25


def test_what_cannot_change_within_a_run_is_refused_whatever_is_allowed(stopped: Path) -> None:
    for setting in ({"strategy": "head-only"}, {"backbone": "test_resnet"}, {"val": 0.5}, {"batch_size": 4}):
        with pytest.raises(finetune.CheckpointError, match="cannot change within a run"):
            finetune.resume(stopped, allow=changes.KINDS, **setting)


def test_workers_and_the_place_of_the_cache_change_nothing(tiny_run, stopped: Path, own: Path, tmp_path: Path) -> None:
    finetune.resume(stopped, workers=1, overrides={"cache.folder": str(tmp_path / "c"), "cache.pixels": "none"})
    whole = tiny_run(data=own, out="whole").folder
    for name in ("model/model.safetensors", "metrics.jsonl", "metrics.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert recipes.load(stopped / "recipe.toml").train.workers == 1


def test_a_resumed_run_computes_with_the_threads_that_it_began_with(stopped: Path, monkeypatch) -> None:
    began = json.loads((stopped / "began.json").read_text())
    (stopped / "began.json").write_text(json.dumps({**began, "threads": 3}))
    used: list[int] = []
    fit = training.fit_phases
    monkeypatch.setattr(
        training, "fit_phases", lambda *args, **more: used.append(torch.get_num_threads()) or fit(*args, **more)
    )
    finetune.resume(stopped)
    assert used == [3] and torch.get_num_threads() == began["threads"]


def test_other_threads_that_are_named_are_another_recipe(stopped: Path) -> None:
    with pytest.raises(finetune.CheckpointError, match=r"train\.threads 'auto' -> 2"):
        finetune.resume(stopped, threads=2)


def test_other_pretrained_weights_are_refused(stopped: Path) -> None:
    began = json.loads((stopped / "began.json").read_text())
    (stopped / "began.json").write_text(json.dumps({**began, "weights": "0" * 32}))
    with pytest.raises(finetune.CheckpointError, match="weights of lenet5 are not those"):
        finetune.resume(stopped)


@pytest.mark.parametrize("file", ["began.json", "checkpoints/last/complete.json"])
def test_a_file_of_a_newer_format_is_refused_by_name(stopped: Path, file: str) -> None:
    content = json.loads((stopped / file).read_text())
    for version in (2, 0):
        (stopped / file).write_text(json.dumps({**content, "format_version": version}))
        with pytest.raises(finetune.CheckpointError, match=f"format_version {version}; this .* reads 1"):
            finetune.resume(stopped)


def test_a_recipe_of_another_format_is_refused_by_name(stopped: Path) -> None:
    file = stopped / "recipe.toml"
    file.write_text(file.read_text().replace("format_version = 1", "format_version = 2"))
    with pytest.raises(finetune.RecipeError, match="format_version = 2: must be 1, the only one this version"):
        finetune.resume(stopped)


def test_rows_and_scans_of_another_format_are_made_anew(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_run("head-only", out="first", overrides={"cache.views": 2}).folder
    before = {entry.name for entry in cache_entries.list_entries(cache_entries.entries_folder())}
    monkeypatch.setattr(cache_entries, "LAYOUT", cache_entries.LAYOUT + 1)
    monkeypatch.setattr(scan_memory, "SCAN_VERSION", scan_memory.SCAN_VERSION - 1)
    again = tiny_run("head-only", out="again", overrides={"cache.views": 2}).folder
    names = {entry.name for entry in cache_entries.list_entries(cache_entries.entries_folder())}
    assert len(names - before) == len(before) == 3
    assert_same(first, again)


def test_allow_names_its_kinds(stopped: Path) -> None:
    with pytest.raises(finetune.RecipeError, match=r"no such kind of change\. Did you mean 'data'"):
        finetune.resume(stopped, allow=["date"])
