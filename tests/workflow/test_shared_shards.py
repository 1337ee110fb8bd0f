"""Several processes on data in shards: what one ends with, each image read by one of them, stopped and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune import ranks
from finetune.data import checks
from finetune.images import shards as members
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import read_inputs
from finetune.types import Manifest
from tests.launching import launched, values
from tests.support import EVERY_STEP, SAME, TINY, assert_same, last_weights, stop_after

PLAIN = {"optim.name": "sgd", "cache.engine": "torch"}  # nothing is drawn in a step


@pytest.fixture
def shards(few: Path, tmp_path: Path) -> str:
    finetune.shard(few, out=tmp_path / "shards", size=30_000)
    return f"wds:{tmp_path / 'shards'}"


@pytest.fixture
def train(shards: str, tmp_path: Path) -> Callable[..., Any]:
    def run(out: str, strategy: str, overrides: dict[str, Any] | None = None, **more: Any) -> finetune.RunResult:
        quick = {**TINY, "batch_size": 6, "epochs": 2, **more}
        keys = {**PLAIN, **(overrides or {})}
        return finetune.run(shards, strategy=strategy, out=tmp_path / out, overrides=keys, **quick)

    return run


@pytest.mark.parametrize(
    ("strategy", "pixels", "workers"), [("head-only", "auto", 0), ("full", "auto", 0), ("full", "none", 2)]
)
def test_two_processes_on_shards_end_with_one_in_half_batches(
    train, tmp_path: Path, strategy: str, pixels: str, workers: int
) -> None:
    work = partial(train, strategy=strategy, overrides={"cache.pixels": pixels}, workers=workers)
    work("parts", micro_batch=3)
    first, second = values(launched(2, lambda _: work("two")))
    assert first == second
    assert_same(tmp_path / "parts", tmp_path / "two", SAME[:2])


def test_two_processes_on_shards_are_stopped_and_resumed_exactly(train, tmp_path: Path) -> None:
    work = partial(train, strategy="full", overrides={**EVERY_STEP, "cache.pixels": "none"})
    values(launched(2, lambda _: work("whole")))
    ended = launched(2, lambda _: work("stopped", on_event=stop_after(3)))
    assert any(isinstance(process.error, finetune.Interrupted) for process in ended)
    values(launched(2, lambda _: finetune.resume(tmp_path / "stopped")))
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    assert last_weights(tmp_path / "stopped").keys() == last_weights(tmp_path / "whole").keys()


def inputs_of(data: str) -> tuple[Manifest, int]:
    """Return the scanned data of a run, and how many of its images lie decoded."""
    settings = {**TINY, "data": data, "strategy": "full"}
    inputs = read_inputs(recipe_of(None, settings=settings, overrides={}))
    assert inputs.pixels is not None
    return inputs.manifest, sum(sample.digest in inputs.pixels for sample in inputs.manifest.samples)


@pytest.mark.parametrize("is_folder", [False, True])
def test_every_shard_and_image_is_read_by_one_process(
    few: Path, shards: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_folder: bool
) -> None:
    data = str(few) if is_folder else shards

    def work(rank: int) -> tuple[list[str], list[Path], Manifest, int]:
        looked: list[str] = []
        opened: list[Path] = []
        through, read = members._looked_through, checks.read_content
        members._looked_through = lambda place, changed: looked.append(place) or through(place, changed)
        checks.read_content = lambda path: opened.append(path) or read(path)
        with ranks.together():
            return looked, opened, *inputs_of(data)

    (looked, opened, manifest, num_kept), (looked_too, opened_too, same, _) = values(launched(2, work))
    assert same == manifest
    assert num_kept == len(manifest.samples) == 24
    assert len(opened) == len(opened_too) == 12
    assert not set(opened) & set(opened_too)
    places = [set(map(str, sorted((tmp_path / "shards").glob("*.tar")))), set(looked) | set(looked_too)]
    assert places[0] == places[1] or (is_folder and not places[1])
    assert abs(len(looked) - len(looked_too)) <= 1 and not set(looked) & set(looked_too)
    if not is_folder:
        parents = ({file.parent for file in files} for files in (opened, opened_too))
        assert len(set.intersection(*parents)) <= 1
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "another"))
    assert inputs_of(data) == (manifest, 24)


def test_what_one_process_does_not_see_is_not_left_out(few: Path) -> None:
    def work(rank: int) -> tuple[int, int]:
        read = checks.read_content

        def blind(path: Path) -> bytes:
            if rank == 1:
                raise FileNotFoundError(2, "No such file or directory")
            return read(path)

        checks.read_content = blind
        with ranks.together():
            manifest, num_kept = inputs_of(str(few))
            return len(manifest.problems), num_kept

    assert values(launched(2, work)) == [(0, 24)] * 2


def test_what_is_wrong_in_the_part_of_any_process_is_said_by_the_first(few: Path, tmp_path: Path) -> None:
    own = shutil.copytree(few, tmp_path / "own")
    files = sorted(own.rglob("*.jpg"))
    bad = [files[0], files[-1]]
    for file in bad:
        file.write_bytes(b"no image")

    def work(rank: int) -> tuple[str, ...]:
        with ranks.together():
            return tuple(problem.file for problem in inputs_of(str(own))[0].problems)

    first, second = values(launched(2, work))
    assert first == second == tuple(file.relative_to(own).as_posix() for file in bad)
