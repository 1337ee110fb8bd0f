"""Run folders are listed, shown and removed by what is in them, and nothing else is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from finetune.checkpoint.claim import claimed
from finetune.checkpoint.run_folder import RunFolder
from finetune.runs import listed
from finetune.runs.listed import list_runs


@pytest.fixture
def shelf(finished: Path, tmp_path: Path) -> Path:
    """Three run folders: a finished one, one that is not, a damaged one; and what is none."""
    root = tmp_path / "runs"
    done = Path(shutil.copytree(finished, root / "done"))
    begun = Path(
        shutil.copytree(finished, root / "begun", ignore=shutil.ignore_patterns("metrics.json", "report.html"))
    )
    damaged = Path(shutil.copytree(finished, root / "damaged"))
    (damaged / "recipe.toml").write_text("no = [toml")
    (damaged / "metrics.json").write_text("[[")
    (root / "other").mkdir()
    (root / "other" / "mine.txt").write_text("mine")
    assert done.is_dir() and begun.is_dir()
    return root


def test_the_list_says_of_each_what_it_is_and_what_it_reached(finetune_cli, shelf: Path) -> None:
    done = finetune_cli("runs", shelf)
    assert done.code == 0 and "3 run folders" in done.out and "other" not in done.out
    said = {run["path"].rsplit("/", 1)[1]: run for run in json.loads(finetune_cli("runs", "ls", shelf, "--json").out)}
    assert set(said) == {"done", "begun", "damaged"}
    value = json.loads((shelf / "done" / "metrics.json").read_text())["test"]["top1"]["value"]
    assert said["done"]["measure"] == "test top1" and said["done"]["score"] == value
    assert said["done"]["strategy"] == "head-only" and said["done"]["num_bytes"] > 10_000
    assert (said["begun"]["is_finished"], said["done"]["is_finished"]) == (False, True)
    assert said["damaged"]["score"] is None and said["damaged"]["network"] == ""
    for line in finetune_cli("runs", shelf).out.splitlines():
        assert "begun" not in line or "not finished" in line


def test_a_folder_that_may_not_be_looked_into_hides_no_other(finetune_cli, shelf: Path, monkeypatch) -> None:
    of, refused = listed._kind, shelf / "done"

    def kind(folder: RunFolder) -> str:
        if folder.path == refused:
            raise PermissionError(13, "Permission denied", str(refused))
        return of(folder)

    monkeypatch.setattr(listed, "_kind", kind)
    assert {run.path.name: run.kind for run in list_runs(shelf)} == {
        "begun": "run", "damaged": "run", "done": "unreadable",
    }  # fmt: skip
    assert "unreadable" in finetune_cli("runs", shelf).out


def test_a_place_that_is_missing_or_empty_is_said(finetune_cli, tmp_path: Path) -> None:
    done = finetune_cli("runs", tmp_path / "nowhere")
    assert done.code == 6 and "no such folder" in done.err
    assert "holds no run folder" in finetune_cli("runs", tmp_path).out
    assert list_runs(tmp_path) == ()


def test_one_is_shown_with_what_is_in_it_and_how_to_go_on(finetune_cli, shelf: Path) -> None:
    shown = finetune_cli("runs", "show", shelf / "done").out
    assert "head-only" in shown and "predictions.csv" in shown and "go on" not in shown
    assert f"resume it: finetune run --resume {shelf / 'begun'}" in finetune_cli("runs", "show", shelf / "begun").out
    done = finetune_cli("runs", "show", shelf / "don")
    assert done.code == 6 and "Did you mean 'done'?" in done.err
    assert finetune_cli("runs", "show", shelf / "other").code == 6


def test_the_page_is_opened_and_named(finetune_cli, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    assert finetune_cli("runs", "open", shelf / "done").out.strip() == str(shelf / "done" / "report.html")
    assert opened == [(shelf / "done" / "report.html").as_uri()]
    done = finetune_cli("runs", "open", shelf / "begun")
    assert done.code == 6 and "has no page" in done.err and "--resume" in done.err


def test_what_is_removed_is_asked_for_and_nothing_else_goes(
    finetune_cli, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finetune_cli("runs", "rm", shelf / "done")  # nobody is there to be asked
    assert done.code == 2 and "--yes" in done.err and (shelf / "done").is_dir()
    done = finetune_cli("runs", "rm", shelf / "done", shelf / "other", "--yes")
    assert done.code == 6 and (shelf / "done").is_dir() and (shelf / "other" / "mine.txt").is_file()
    done = finetune_cli("runs", "rm", shelf / "done", shelf / "damaged", "-y")
    assert done.code == 0 and "2 run folders removed" in done.out
    assert sorted(place.name for place in shelf.iterdir()) == ["begun", "other"]


def test_a_run_that_a_process_writes_into_is_left(finetune_cli, shelf: Path) -> None:
    holds = f"from pathlib import Path; from finetune.checkpoint.claim import claimed; from finetune.checkpoint.run_folder import RunFolder\nwith claimed(RunFolder(Path({str(shelf / 'begun')!r})), seconds=0): print('held', flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        done = finetune_cli("runs", "rm", shelf / "done", shelf / "begun", "--yes")
        assert done.code == 5 and "another process is writing into" in done.err
        other.communicate("\n")
    assert (shelf / "done").is_dir() and (shelf / "begun").is_dir()
    with claimed(RunFolder(shelf / "begun"), seconds=0):
        pass


def test_what_is_not_the_runs_own_is_not_removed_with_it(
    finetune_cli, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shelf / "link").symlink_to("done")
    shutil.copytree(shelf / "done", shelf / "begun" / "mine")
    there = sorted(shelf.rglob("*"))
    for named, said in {
        ("link",): "is a link to a run folder",
        ("done", "damaged", "done"): "is named twice",
        ("begun",): "holds another run folder, mine",
        ("begun/mine", "begun"): "which is also to be removed",
    }.items():
        done = finetune_cli("runs", "rm", *(shelf / name for name in named), "--yes")
        assert (done.code, said in done.err) == (6, True), done.err
    monkeypatch.chdir(shelf / "done")
    for named in (".", shelf / "done"):
        done = finetune_cli("runs", "rm", named, "--yes")
        assert done.code == 6 and "holds the working directory" in done.err
    assert "done" in finetune_cli("runs", ".").out
    assert sorted(shelf.rglob("*")) == there


def test_what_an_interrupted_removal_left_is_in_nobodys_way(finetune_cli, shelf: Path) -> None:
    shutil.copytree(shelf / "done" / "model", shelf / ".done.old" / "model")
    assert finetune_cli("runs", "rm", shelf / "done", "--yes").code == 0
    assert sorted(place.name for place in shelf.iterdir()) == ["begun", "damaged", "other"]


def test_an_ensemble_that_loses_a_member_is_named(finetune_cli, shelf: Path) -> None:
    members = [{"run": str(shelf / "done"), "count": 2}, {"run": "begun", "count": 1}, {"run": "damaged", "count": 0}]
    for name, content in (("joined", {"members": members}), ("broken", [])):
        (shelf / name).mkdir()
        (shelf / name / "ensemble.json").write_text(json.dumps(content))
    done = finetune_cli("runs", "rm", shelf / "damaged", "--yes")  # which took no part
    assert done.code == 0 and "an ensemble that" not in done.out
    done = finetune_cli("runs", "rm", shelf / "done", shelf / "begun", "--yes")
    assert done.code == 0 and [line for line in done.out.splitlines() if "an ensemble that" in line] == [
        f"{shelf / 'joined'} is an ensemble that loses its member {name}: its file still works"
        for name in ("done", "begun")
    ]
    assert "an ensemble that" not in finetune_cli("runs", "rm", shelf / "joined", "--yes").out
