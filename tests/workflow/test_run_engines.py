"""A run whose frozen layers are run by another engine: the same bits cached, uncached and resumed."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.errors import ResourceError
from finetune.features import engines
from finetune.prepare import passes
from tests.support import QUICK, assert_same, mostly_slow, stop_after

PAIRS = list(product(["folded", "onnxruntime"], ["head-only", "linear-probe"]))


@pytest.mark.parametrize(("engine", "strategy"), mostly_slow(PAIRS, PAIRS[1], PAIRS[2]))
def test_with_and_without_the_cache_the_bits_are_the_same(tiny_run, engine: str, strategy: str) -> None:
    plain = {"augment.level": "none", "cache.engine": engine}
    cached = tiny_run(strategy, out="cached", overrides=plain).folder
    assert json.loads((cached / "cached.json").read_text())["engines"] == {"0": engine}
    bare = tiny_run(strategy, out="bare", overrides={**plain, "cache.features": "none"}).folder
    assert_same(cached, bare)
    assert f"by {engine}, within" in (cached / "report.html").read_text()


def test_a_run_that_is_resumed_keeps_its_engine_and_its_bits(tiny_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engines, "FEWEST", 0)
    monkeypatch.setattr(engines, "_seconds", lambda trunk, images: {"": 1.0}.get(trunk.engine, 1e-6))
    monkeypatch.setitem(engines.ENGINES, "folded", engines.Engine(engines._folded, None, guess=0.0, gain=1.0))
    for other in ("onnxruntime", "openvino"):
        monkeypatch.delitem(engines.ENGINES, other)
    whole = tiny_run("head-only", out="whole").folder
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "another"))
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", out="stopped", on_event=stop_after(2))
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "a third"))
    monkeypatch.setattr(engines, "_seconds", lambda trunk, images: 1e-9)  # torch would be taken now
    said: list[str] = []
    finetune.resume(tmp_path / "stopped", on_event=lambda event: said.append(str(event.facts.get("text"))))
    assert any("by folded, as before" in text for text in said)
    assert_same(whole, tmp_path / "stopped")


def test_an_engine_that_is_gone_is_one_error_and_another_recipe_goes_on(tiny_run, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(finetune.Interrupted):
        tiny_run("head-only", overrides={"cache.engine": "onnxruntime"}, on_event=stop_after(2))
    monkeypatch.setattr(engines, "_is_installed", lambda library: False)
    with pytest.raises(ResourceError, match=r"began with .* onnxruntime.*pip install onnxruntime"):
        finetune.resume(tmp_path / "run")
    with pytest.raises(ResourceError, match="began with its frozen layers run by onnxruntime"):
        finetune.resume(tmp_path / "run", allow=["recipe"], overrides={"cache.engine": "auto"})
    finetune.resume(tmp_path / "run", allow=["recipe"], overrides={"cache.engine": "torch"})
    assert json.loads((tmp_path / "run/cached.json").read_text())["engines"] == {"0": "torch"}


def test_by_another_engine_the_same_epoch_is_delivered_and_the_same_classes_are_named(
    drawn: Path, tmp_path: Path
) -> None:
    results = {}
    for engine in ("torch", "folded", "onnxruntime"):
        results[engine] = finetune.run(
            drawn, strategy="head-only", backbone="test_resnet", epochs=3, out=tmp_path / engine,
            overrides={"cache.engine": engine}, **QUICK,
        )  # fmt: skip
    assert len({result.delivered_epoch for result in results.values()}) == 1
    named = {(result.folder / "predictions.csv").read_text() for result in results.values()}
    assert len(named) == 1


def test_eval_of_many_images_by_an_engine_measures_the_same(finished: Path, drawn: Path, monkeypatch) -> None:
    expected = finetune.evaluate(finished, data=drawn)
    monkeypatch.setattr(engines, "FEWEST", 0)
    monkeypatch.setattr(passes, "FEWEST", 0)
    monkeypatch.setattr(engines, "_seconds", lambda trunk, images: {"": 1e3}.get(trunk.engine, 1e-6))
    taken: list[str] = []
    equip = passes.equip

    def watched(*args: Any, **more: Any) -> tuple[str, str]:
        taken.append((chosen := equip(*args, **more))[0])
        return chosen

    monkeypatch.setattr(passes, "equip", watched)
    found = finetune.evaluate(finished, data=drawn)
    assert taken and taken[0] != "torch"
    assert found.metrics["top1"] == expected.metrics["top1"]
    assert found.confusion == expected.confusion


@pytest.mark.parametrize("strategy", ["head-only", "top-k", "full", "lp-ft"])
def test_a_run_is_measured_as_eval_measures_it(tiny_run, strategy: str) -> None:
    result = tiny_run(strategy, test=0.2)
    for split in ("val", "test"):
        measured = finetune.evaluate(result.folder, split=split).metrics
        assert {name: value.value for name, value in measured.items()} == pytest.approx(
            {name: value["value"] for name, value in result.metrics[split].items()}, abs=1e-6
        )
