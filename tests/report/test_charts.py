"""Coordinates of the report's charts: what lies where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.report.charts import HEIGHT, TICKS, WIDTH, of_shares, over_epochs, reliability, scale
from finetune.types import EpochLine


def history(count: int = 4, *, phases: str = "aabb") -> list[EpochLine]:
    return [
        EpochLine(phases[at], at + 1, 0.1, 1.0 - 0.1 * at, 0.5 + 0.1 * at, 1.2 - 0.2 * at, 0.4 + 0.1 * at)
        for at in range(count)
    ]


def test_loss_and_score_have_a_chart_each_with_train_and_val() -> None:
    loss, score = over_epochs(history(), score="top1", delivered=3)
    assert [chart.title for chart in (loss, score)] == ["loss", "top1"]
    assert [line.name for line in loss.lines] == ["train", "val"]
    train = loss.lines[0].dots
    assert [x for x, _ in train] == [0, pytest.approx(WIDTH / 3, abs=0.1), pytest.approx(2 * WIDTH / 3, abs=0.1), WIDTH]
    assert [y for _, y in train] == sorted(y for _, y in train)  # falls: y grows downwards
    assert [mark.label for mark in loss.marks] == ["b", "delivered: epoch 3"]
    assert loss.marks[1].at == train[2][0]
    assert train[1][0] < loss.marks[0].at < train[2][0]


def test_one_epoch_is_no_curve_and_gaps_are_left_out() -> None:
    assert over_epochs(history(1), score="top1", delivered=1) == []
    rows = [EpochLine("a", at + 1, 0.1, None, None, 1.0 - 0.1 * at, None, {"map": 0.5}) for at in range(3)]
    loss, score = over_epochs(rows, score="map", delivered=3)
    assert [line.name for line in loss.lines] == ["val"]
    assert [line.name for line in score.lines] == ["val"]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_axis_holds_both_ends_in_a_few_round_steps(low: float, span: float) -> None:
    first, last, ticks = scale(low, low + span)
    slack = 1e-6 * (last - first)
    assert first <= low + slack and low + span <= last + slack
    assert 2 <= len(ticks) <= TICKS
    assert ticks == sorted(ticks) and (first, last) == (ticks[0], ticks[-1])


def test_an_axis_of_nothing_finite_is_drawn_all_the_same() -> None:
    assert len(scale(float("inf"), float("inf"))[2]) >= 2


def test_shares_lie_between_the_axes() -> None:
    chart = of_shares("right", [(0.25, 1.0), (1.0, 0.8)], x_name="answered")
    assert chart.lines[0].dots == ((WIDTH / 4, 0.0), (WIDTH, HEIGHT))


def test_confidence_is_gathered_in_tenths() -> None:
    rows = reliability([0.95, 1.0, 0.91, 0.3], [True, True, False, False])
    assert [(round(row["confidence"], 3), row["right"], row["count"]) for row in rows] == [
        (0.3, 0.0, 1),
        (0.953, pytest.approx(2 / 3), 3),
    ]
