"""find-lr, and a run that measures its learning rate once and pins it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import finetune
from finetune import recipe as recipes
from tests.support import QUICK, TINY, assert_same, stop_after, warned


def test_find_lr_draws_the_same_picture_twice_and_leaves_no_run(drawn: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    more = {**QUICK, "backbone": "test_resnet", "strategy": "head-only"}
    found = finetune.find_lr(drawn, plot=tmp_path / "a.svg", **more)
    again = finetune.find_lr(drawn, plot=tmp_path / "b.svg", **more)
    assert found.curve == again.curve
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    ET.fromstring((tmp_path / "a.svg").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    assert (found.strategy, found.optimiser, found.usual) == ("head-only", "adamw", 1e-3)
    assert found.to_json()["suggested"] == found.curve.valley
    with pytest.raises(finetune.ResourceError, match=r"a\.svg already exists"):
        finetune.find_lr(drawn, plot=tmp_path / "a.svg", **more)


def test_what_has_no_rate_is_refused_with_the_reason(drawn: Path, tmp_path: Path) -> None:
    more = {**QUICK, "backbone": "test_resnet"}
    with pytest.raises(finetune.RecipeError, match="probe is solved to convergence"):
        finetune.find_lr(drawn, strategy="linear-probe", **more)
    with pytest.raises(finetune.RecipeError, match="a race has several strategies"):
        finetune.find_lr(drawn, strategy="race", **more)
    with pytest.raises(finetune.RecipeError, match="rates must rise"):
        finetune.find_lr(drawn, low=1.0, high=0.1, **more)
    with pytest.raises(finetune.RecipeError, match=r"a\.svg is inside the data"):
        finetune.find_lr(drawn, strategy="head-only", plot=drawn / "a.svg", **more)
    with pytest.raises(finetune.RecipeError, match="no meaning with strategy"):
        finetune.run(drawn, strategy="race", lr="range-test", out=tmp_path / "r", **more)
    assert not (tmp_path / "r").exists()


def test_a_run_measures_its_rate_and_pins_it_so_that_its_recipe_repeats_it(few: Path, tmp_path: Path) -> None:
    more = {**TINY, "strategy": "full", "epochs": 3}
    told: list[str] = []
    first = finetune.run(
        few,
        lr="range-test",
        out=tmp_path / "a",
        on_event=lambda event: told.append(str(event.facts.get("text"))),
        **more,
    )
    lr = recipes.load(first.folder / "recipe.toml").optim.lr
    expected = finetune.find_lr(few, **more).curve.suggested
    assert expected is not None and lr == float(f"{expected:.3g}")
    assert any(f"learning rate {lr:g}, by a range test" in text for text in told)
    assert f"Learning rate {lr:g}, by a range test" in (first.folder / "report.html").read_text()
    plain = finetune.run(few, lr=lr, out=tmp_path / "b", **more)
    again = finetune.run(recipe=first.folder / "recipe.toml", out=tmp_path / "c")
    for other in (plain, again):
        assert_same(first.folder, other.folder)
    with pytest.raises(finetune.Interrupted):
        finetune.run(few, lr="range-test", out=tmp_path / "d", on_event=stop_after(4), **more)
    assert_same(first.folder, finetune.resume(tmp_path / "d").folder)


def test_where_there_is_nothing_to_measure_the_strategys_own_rate_stays_and_that_is_said(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.optim.range_curve import curve_of
    from finetune.runs import measured_lr

    flat = curve_of([1e-3, 1e-2, 1e-1], [1.0, 1.0, 1.0], is_cut=False)
    monkeypatch.setattr(measured_lr, "range_test", lambda *_, **__: flat)
    more = {**TINY, "strategy": "full", "epochs": 1, "lr": "range-test"}
    done, texts = warned(finetune.run, few, out=tmp_path / "a", **more)
    assert any("shows no rate at which the loss falls" in text for text in texts)
    assert recipes.load(done.folder / "recipe.toml").optim.lr == 1e-3
    solved = finetune.run(few, out=tmp_path / "b", **{**more, "strategy": "linear-probe"})
    assert recipes.load(solved.folder / "recipe.toml").optim.lr == 1e-3
