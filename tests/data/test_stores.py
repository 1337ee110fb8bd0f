"""Shards in a store, and in one that goes away half-way: one clear error, nothing left out, exact resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

import finetune
from finetune.data import checks, sources
from finetune.errors import DataError
from finetune.images import shards as members
from finetune.images import stores
from finetune.images.files import read_content
from tests.support import EVERY_STEP, TINY, assert_same

STORE = "wds:memory://sets/shapes"
KEYS = {**EVERY_STEP, "cache.pixels": "none"}
GONE = "the server went away"


@pytest.fixture
def store(few: Path, tmp_path: Path) -> Iterator[Any]:
    """A store in memory, with the shards of a set in it."""
    there = fsspec.filesystem("memory")
    members._shards.clear()
    finetune.shard(few, out=tmp_path / "local", size=30_000)
    for file in (tmp_path / "local").iterdir():
        there.pipe(f"/sets/shapes/{file.name}", file.read_bytes())
    yield there
    there.rm("/sets", recursive=True)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Break off every read of a store from a number on."""
    told = {"reads": 0, "first": 10**9}
    cat = type(fsspec.filesystem("memory")).cat_file

    def failing(*args: Any, **more: Any) -> bytes:
        told["reads"] += 1
        if told["reads"] > told["first"]:
            raise ConnectionError(GONE)
        return cat(*args, **more)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", failing)
    return told


def test_shards_in_a_store_are_listed_below_the_address_that_was_given(store: Any, tmp_path: Path) -> None:
    there, here = sources.read(STORE), sources.read(f"wds:{tmp_path / 'local'}")
    assert (there.root, there.samples, there.classes) == ("memory://sets/shapes", here.samples, here.classes)
    for sample in there.samples:
        assert read_content(Path(there.root, sample.file)) == read_content(Path(here.root, sample.file))
    assert {s.file.partition("/")[0] for s in sources.read(f"{STORE}/all-00000[01]*.tar").samples} <= {
        "all-000000.tar", "all-000001.tar",
    }  # fmt: skip
    store.pipe("/sets/shapes/.new/all-000000.tar", b"half")
    assert sources.read(STORE).samples == here.samples


def test_a_store_that_goes_away_while_shards_are_looked_through_is_one_error(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, places = stores.opened, []

    @contextmanager
    def failing(place: str) -> Iterator[Any]:
        places.append(place)
        with opened(place) as stream, stores._as_os_error():
            if len(places) == 3:
                raise ConnectionError(GONE)
            yield stream

    monkeypatch.setattr(members, "opened", failing)
    with pytest.raises(DataError, match=rf"all-000002\.tar: cannot be read: .*{GONE}") as error:
        sources.read(STORE)
    assert "try again later" in error.value.hint
    assert len(sources.read(STORE).samples) == 24
    assert places.count("memory://sets/shapes/all-000000.tar") == 1


def test_a_store_that_goes_away_in_the_scan_leaves_no_image_out(store: Any, breaking: dict[str, int]) -> None:
    listed = sources.read(STORE)
    breaking["first"] = breaking["reads"] + 5
    with pytest.raises(
        DataError, match=rf"memory://sets/shapes/all-\d+\.tar/\d+\.jpg: cannot be read: .*{GONE}"
    ) as error:
        checks.scan(listed, workers=1)
    assert "try again later" in error.value.hint
    breaking["first"] = 10**9
    assert len(checks.scan(listed).samples) == 24


def test_a_store_that_goes_away_in_training_stops_the_run_which_goes_on_exactly(
    store: Any, breaking: dict[str, int], tmp_path: Path
) -> None:
    train = partial(finetune.run, STORE, strategy="full", overrides=KEYS, **{**TINY, "epochs": 2})
    train(out=tmp_path / "whole")
    breaking["first"] = breaking["reads"] + 20
    with pytest.raises(DataError, match=rf"all-\d+\.tar/\d+\.jpg could be read .* cannot now: .*{GONE}") as error:
        train(out=tmp_path / "stopped")
    assert "--resume" in error.value.hint
    breaking["first"] = 10**9
    finetune.resume(tmp_path / "stopped")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("size", [0, 2_000])
def test_images_that_a_changed_shard_lacks_are_named_when_a_run_is_to_go_on(
    store: Any, breaking: dict[str, int], tmp_path: Path, size: int
) -> None:
    breaking["first"] = breaking["reads"] + 50
    with pytest.raises(DataError, match=GONE):
        finetune.run(STORE, strategy="full", out=tmp_path / "run", overrides=KEYS, **TINY)
    breaking["first"] = 10**9
    name = "/sets/shapes/all-000001.tar"
    content = store.cat(name)
    store.rm(name)
    if size:
        store.pipe(name, content[:size])
    with pytest.raises(
        finetune.CheckpointError, match=r"changed since .* gone or unreadable \(all-000001\.tar/\d+\.jpg"
    ):
        finetune.resume(tmp_path / "run")
