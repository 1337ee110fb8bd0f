"""Killed at any point of writing, again and again, a run that is resumed ends as one that was never killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.data.sample import write_sample

from .killing import Ended, forked

SAME = ("model/model.safetensors", "checkpoints/best/model.safetensors", "metrics.jsonl", "metrics.json")
TINY = {"backbone": "lenet5", "pretrained": False, "image_size": 32, "batch_size": 8, "workers": 0, "device": "cpu"}
VIEWS = {"cache.views": 2}
EVERY_STEP = {"train.checkpoint_every": 1e-9}

Start = Callable[..., finetune.RunResult]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "shapes"
    write_sample(folder, per_class=4)
    return folder


def start(drawn: Path, out: Path, strategy: str, **more: Any) -> finetune.RunResult:
    return finetune.run(drawn, strategy=strategy, out=out, **{**TINY, "epochs": 2, **more})


def again(begin: Callable[[], object], out: Path) -> None:
    """Do what the tool says: resume, or give the same command again where nothing had been written."""
    if not out.exists() or not any(out.iterdir()):
        begin()
        return
    try:
        finetune.resume(out)
    except finetune.CheckpointError as error:
        if "had written anything" not in error.message:
            raise
        begin()


def die_everywhere(begin: Callable[[], object], out: Path, *, is_full: bool = False, limit: int = 200) -> list[Ended]:
    """Start a run, end it at the first point where it has not ended yet, go on, until it comes to its end."""
    seen: set[str] = set()
    found: list[Ended] = []
    work = begin
    while len(found) < limit:
        ended = forked(work, lambda _, label: label not in seen, is_full=is_full)
        if ended.code == 0 and set(ended.points) <= seen:
            return found
        found.append(ended)
        assert not set(ended.points) <= seen, ended
        seen.add(next(label for label in ended.points if label not in seen))
        work = lambda: again(begin, out)  # noqa: E731
    raise AssertionError(f"still not at its end after {limit} times, last at {found[-1].points[-1]}")


def assert_same(whole: Path, resumed: Path) -> None:
    for name in SAME:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def unfinished_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def own_cache(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(place))


def test_killed_once_at_every_kind_of_point_a_run_ends_as_if_never_killed(drawn, tmp_path, monkeypatch) -> None:
    more = {"overrides": VIEWS, "epochs": 3}
    whole = start(drawn, tmp_path / "whole", "lp-ft", **more).folder
    own_cache(monkeypatch, tmp_path / "cache")
    killed = tmp_path / "killed"
    found = die_everywhere(lambda: start(drawn, killed, "lp-ft", **more), killed)
    assert all(ended.signal == signal.SIGKILL for ended in found), [e.said for e in found if not e.signal]
    assert len(found) > 40
    assert_same(whole, killed)
    assert unfinished_files(killed) == []


def test_with_the_disk_full_at_every_kind_of_point_a_run_says_so_and_goes_on_later(drawn, tmp_path, monkeypatch) -> None:
    whole = start(drawn, tmp_path / "whole", "full").folder
    own_cache(monkeypatch, tmp_path / "cache")
    stopped = tmp_path / "stopped"
    found = die_everywhere(lambda: start(drawn, stopped, "full"), stopped, is_full=True)
    for ended in found:
        assert (ended.code, "cannot be" in ended.said, "hint: " in ended.said) == (5, True, True), ended.said
    assert len(found) > 30
    assert_same(whole, stopped)
    assert unfinished_files(stopped) == []
