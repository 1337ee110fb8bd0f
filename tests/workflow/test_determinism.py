"""The same recipe on the same machine gives the same bits: again, with any number of workers, cached or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.features import cache as feature_cache

from .test_kill import assert_same

STRATEGIES = ["head-only", "top-k", "full", "linear-probe"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("strategy", STRATEGIES)
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


@pytest.mark.parametrize("strategy", ["full", "linear-probe"])
def test_with_and_without_caches_the_bits_are_the_same(tiny_run, strategy: str) -> None:
    plain = {"augment.level": "none"}
    """Full, for the pixels alone; `test_cache.py` has more of the features."""
    cached = tiny_run(strategy, out="cached", overrides=plain).folder
    bare = tiny_run(strategy, out="bare", overrides={**plain, "cache.features": "none", "cache.pixels": "none"}).folder
    assert_same(cached, bare)
