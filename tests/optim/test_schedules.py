"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from itertools import product

import pytest

from finetune.optim.schedules import SCHEDULES, lr_factor


def factors(total: int, warmup: float, schedule: str) -> list[float]:
    return [lr_factor(step, total=total, warmup=warmup, schedule=schedule) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_learns_and_none_above_the_peak(schedule: str) -> None:
    for total, warmup in product([1, 2, 3, 10, 101], [0.0, 0.01, 0.1, 0.5, 0.99]):
        found = factors(total, warmup, schedule)
        assert all(0 < factor <= 1 for factor in found), (total, warmup)
        assert max(found) == 1 or math.ceil(total * warmup) >= total, (total, warmup)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_rises_to_the_peak_in_equal_steps_then_falls_or_stays(schedule: str) -> None:
    found = factors(40, 0.1, schedule)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    rest = found[4:]
    assert rest == ([1.0] * 36 if schedule == "constant" else sorted(rest, reverse=True))


def test_the_cosine_has_its_known_values() -> None:
    found = factors(100, 0.0, "cosine")
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert found[25] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))
    assert lr_factor(100, total=100, warmup=0.0, schedule="cosine") == pytest.approx(0)


def test_a_phase_without_steps_is_no_division_by_zero() -> None:
    assert lr_factor(0, total=0, warmup=0.1, schedule="cosine") == 1
