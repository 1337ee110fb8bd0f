"""What a run says that it is about to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.prepare import outline as outlined
from finetune.prepare.asked import recipe_of
from finetune.prepare.prepared import Prepared, prepare
from finetune.strategy.budget import Option

TINY = {"backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 32, "train.workers": 0}


def prepared(data: Path, **keys: object) -> Prepared:
    return prepare(recipe_of(overrides={"data.path": str(data), "train.device": "cpu", **TINY, **keys}))


def test_a_short_run_names_its_steps_and_times_nothing(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlined, "predicted", lambda *_, **__: pytest.fail("it is short"))
    run = prepared(few, **{"strategy.name": "lp-ft", "train.epochs": 3})
    assert outlined.outline(run) == "4 steps: solve probe, train full (3 epochs), measure on val, report"


def test_a_long_run_says_how_long_it_takes_at_most(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlined, "WORTH", {"cpu": 0.001})
    monkeypatch.setattr(outlined, "predicted", lambda *_, **__: Option("full", 4, 1, 10.0, 60.0))
    run = prepared(few, **{"strategy.name": "full", "train.epochs": 4, "train.refit": True})
    assert outlined.outline(run) == (
        "4 steps, at most about 9m of computing: train full (4 epochs), measure on val, refit on train and val, report"
    )
    assert outlined.outline(run, has_limit=True).startswith("4 steps: train full")  # `time_limit` has said how long


def test_a_head_on_cached_features_is_as_much_work_as_its_views_and_not_as_its_epochs(few: Path) -> None:
    head = prepared(few, **{"strategy.name": "head-only", "train.epochs": 100})
    every = prepared(few, **{"strategy.name": "full", "train.epochs": 100})
    assert outlined._least_work(every) == 25 * outlined._least_work(head) > 0
