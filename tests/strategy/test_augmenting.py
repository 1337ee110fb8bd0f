"""A plan says which level of augmentation is taken where none is named, and why."""

from __future__ import annotations

from typing import Any

import finetune
from finetune.strategy.strategies import why_usual_level
from tests.support import TINY

SETTINGS: dict[str, Any] = {key: value for key, value in TINY.items() if key != "workers"}


def test_a_plan_says_the_level_that_auto_is_and_nothing_of_one_that_is_named() -> None:
    open_, named = (
        [
            note
            for note in finetune.plan(strategy="full", overrides=more, **SETTINGS).notes
            if "augment.level auto" in note
        ]
        for more in ({}, {"augment.level": "light"})
    )
    assert open_ == [why_usual_level("full")] and "auto: medium; " in open_[0] and named == []
