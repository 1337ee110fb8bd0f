"""A run folder belongs to one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from finetune.checkpoint.claim import claimed, new_folder
from finetune.checkpoint.comparison import open_comparison
from finetune.checkpoint.run_folder import RunFolder, open_unfinished
from finetune.errors import CheckpointError, ResourceError


def compete(barrier: Barrier, out: Path | None) -> str:
    barrier.wait()
    try:
        with new_folder(out, words=["data", "net"]) as folder:
            folder.recipe.write_text("mine")
            time.sleep(0.05)
            return str(folder.path)
    except ResourceError as error:
        return error.message


@pytest.mark.parametrize("attempt", range(5))
def test_of_many_that_start_at_the_same_moment_one_gets_the_folder(tmp_path: Path, attempt: int) -> None:
    barrier = Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: compete(barrier, tmp_path / "run"), range(8)))
    assert said.count(str(tmp_path / "run")) == 1
    assert all("is not empty" in text or "another process" in text for text in said if text != str(tmp_path / "run"))


def test_without_a_name_each_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    barrier = Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: compete(barrier, None), range(8)))
    assert len(set(said)) == 8
    assert all(text.startswith("runs/") for text in said)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from finetune.checkpoint.claim import new_folder\n"
        "with new_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match="another process"), claimed(RunFolder(tmp_path / "run"), seconds=0):
            pass
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with new_folder(tmp_path / "run") as folder:
        assert folder.path.is_dir()


def test_a_block_that_fails_before_there_is_a_recipe_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a" / "b" / "run") as folder:
        folder.split.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as folder:
        (folder.path / "notes.txt").write_text("mine")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_block_that_fails_after_the_recipe_leaves_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as folder:
        folder.recipe.write_text("whole")
        raise RuntimeError
    assert (tmp_path / "run" / "recipe.toml").read_text() == "whole"


PROBE = ".filelock-probe-0f"
LEFT = [(), (".lock",), (PROBE,), (PROBE, ".DS_Store"), (".lock", ".split.csv.new", "split.csv")]


@pytest.mark.parametrize("names", LEFT, ids="+".join)
@pytest.mark.parametrize("opened", [open_unfinished, open_comparison])
def test_where_nothing_of_a_run_was_written_the_same_command_is_to_be_given_again(tmp_path, names, opened) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for name in names:
        (place / name).touch()
    with pytest.raises(CheckpointError, match="before it wrote anything") as caught:
        opened(place)
    assert f"--out {place}" in caught.value.hint
    with new_folder(place) as folder:
        folder.recipe.write_text("mine")
    assert {PROBE, ".split.csv.new"}.isdisjoint(path.name for path in place.iterdir())
    assert (place / ".DS_Store").exists() == (".DS_Store" in names)


def test_a_folder_with_files_of_others_is_neither_a_stopped_run_nor_free(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / PROBE).touch()
    with pytest.raises(CheckpointError, match="is not a run folder"):
        open_unfinished(tmp_path)
    with pytest.raises(ResourceError, match="is not empty"), new_folder(tmp_path):
        pass
