"""The same recipe gives the same bits on one machine: again, with any number of workers, on two threads, cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune
from finetune.features import cache as feature_cache
from tests.support import assert_same, mostly_slow, stop_after

STRATEGIES = ["head-only", "top-k", "full", "linear-probe"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("strategy", mostly_slow([(name,) for name in STRATEGIES], ("head-only",), ("full",)))
def test_again_with_other_workers_the_bits_are_the_same(
    tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Each run fills a cache of its own, the one without workers too: what is compared is computed."""
    monkeypatch.setattr(feature_cache, "FEWEST_IN_ONE_PASS", 1)
    folders = []
    for name, workers in (("none", 0), ("one", 1), ("three", 3)):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache-{name}"))
        folders.append(tiny_run(strategy, out=name, workers=workers, overrides={"cache.views": 2}).folder)
    for other in folders[1:]:
        assert_same(folders[0], other)


def test_with_two_threads_again_and_resumed_the_bits_are_the_same(
    tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "again", "stopped"):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache-{name}"))
        if name != "stopped":
            tiny_run("full", out=name, epochs=1, threads=2)
            continue
        with pytest.raises(finetune.Interrupted):
            tiny_run("full", out=name, epochs=1, threads=2, on_event=stop_after(2))
        finetune.resume(tmp_path / name)
    assert json.loads((tmp_path / "whole/began.json").read_text())["threads"] == 2
    assert_same(tmp_path / "whole", tmp_path / "again")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("strategy", ["full", "linear-probe"])
def test_with_and_without_caches_the_bits_are_the_same(tiny_run, strategy: str) -> None:
    plain = {"augment.level": "none"}
    """Full, for the pixels alone; `test_cache.py` has more of the features."""
    cached = tiny_run(strategy, out="cached", overrides=plain).folder
    bare = tiny_run(strategy, out="bare", overrides={**plain, "cache.features": "none", "cache.pixels": "none"}).folder
    assert_same(cached, bare)
