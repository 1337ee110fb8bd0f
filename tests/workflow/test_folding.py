"""Still norms are trained in the convolutions before them: said, as good as apart, and not done if nobody wants it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune import recipe as recipes
from finetune.features.folding import FoldedConvolution
from tests.support import stop_after

ONE = {"backbone": "test_resnet", "epochs": 2}


def told_of(folder: Path) -> bool:
    return "batch norms computed with the convolutions before them" in (folder / "report.html").read_text()


def val_losses(folder: Path) -> list[float]:
    return [json.loads(line)["val_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["full", "top-k"])
def test_folded_or_not_a_run_learns_the_same(quick_run, strategy: str) -> None:
    folded = quick_run(strategy, out="folded", **ONE).folder
    apart = quick_run(strategy, out="apart", overrides={"train.fold_norms": False}, **ONE).folder
    assert recipes.load(folded / "recipe.toml").train.fold_norms is True
    assert told_of(folded) and not told_of(apart)
    assert val_losses(folded) == pytest.approx(val_losses(apart), rel=1e-3)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [("head-only", {}), ("linear-probe", {}), ("full", {"strategy.norm_statistics": "updated"})],
)
def test_where_no_still_norm_is_trained_nothing_is_said(quick_run, strategy: str, changes: dict[str, Any]) -> None:
    assert not told_of(quick_run(strategy, overrides=changes, **ONE).folder)


def test_what_would_not_train_alike_stays_apart_and_the_run_says_so(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FoldedConvolution.forward
    monkeypatch.setattr(FoldedConvolution, "forward", lambda self, images: forward(self, images) * 1.01)
    folder = quick_run("full", **ONE).folder
    assert "its outputs would differ, so they stay apart" in (folder / "report.html").read_text()


def test_a_run_that_began_before_there_was_the_key_goes_on_as_it_began(quick_run, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    with pytest.raises(finetune.Interrupted):
        quick_run("full", out="old", on_event=stop_after(2), overrides={"train.fold_norms": False}, **ONE)
    recipe = folder / "recipe.toml"
    kept = [line for line in recipe.read_text().splitlines() if not line.startswith("fold_norms")]
    recipe.write_text("\n".join(kept) + "\n")
    finetune.resume(folder, allow=["recipe"])
    assert not told_of(folder)
