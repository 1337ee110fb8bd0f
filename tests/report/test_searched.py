"""The page of a search: every trial lies inside its axes, whatever kind of values were searched."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.report.searched import HEIGHT, WIDTH, value_panel


def trial(number: int, value: Any, score: float | None = 0.5, epochs: int = 3) -> dict[str, Any]:
    curve = [] if score is None else [score] * epochs
    state = "failed" if score is None else "done"
    ended = {"state": state, "score": score, "curve": curve}
    return {"study": "coarse", "number": number, "params": {"key": value}, **ended}


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1e-5, 1e-3, 1e-1], True),
        ([0.1, 0.15, 0.2], False),
        ([0.0, 0.1, 100.0], False),
        ([8, 16, 64], False),
        ([-3.0, 2.0], False),
        ([7, 7], False),
        (["adamw", "lion", "adamw"], False),
        ([True, False], False),
        ([1, "auto"], False),
    ],
)
def test_every_trial_lies_inside_its_axes(values: list[Any], is_log: bool) -> None:
    trials = [trial(number, value, 0.2 + number / 10) for number, value in enumerate(values)]
    panel = value_panel("key", trials, whole=3)
    assert panel is not None and panel.is_log == is_log
    assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in panel.dots)
    assert all(0 <= at <= WIDTH for at, _ in panel.across) and all(0 <= at <= HEIGHT for at, _ in panel.up)
    assert 1 <= len(panel.across) <= 8 and len(panel.up) >= 2
    heights = [dot.y for dot in panel.dots]
    assert heights == sorted(heights, reverse=True)  # a better score stands higher


def test_equal_values_stand_at_one_place_and_larger_ones_further_right() -> None:
    panel = value_panel("key", [trial(0, 1e-4), trial(1, 1e-2), trial(2, 1e-4), trial(3, 1e-1)], whole=3)
    assert panel is not None
    first, second, again, last = (dot.x for dot in panel.dots)
    assert first == again == 0 and first < second < last == WIDTH
    assert second == pytest.approx(2 / 3 * WIDTH, abs=0.1)  # on a logarithmic axis


def test_short_and_failed_trials_are_told_from_whole_ones() -> None:
    trials = [trial(0, 1.0), trial(1, 2.0, epochs=1), trial(2, 3.0, None)]
    panel = value_panel("key", trials, whole=3)
    assert panel is not None and [dot.is_whole for dot in panel.dots] == [True, False]
    assert value_panel("key", trials[1:], whole=3) is None
    assert value_panel("other", trials, whole=3) is None
