"""What a range test suggests, on curves whose fall is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.optim.range_curve import curve_of, has_run_away, longest_fall, rising_rates, smoothed

RATES = rising_rates(1e-6, 10.0, 100)


def losses(*, fall: float, blow_up: float, noise: float = 0.0) -> list[float]:
    """A plateau that falls around a rate and runs away around another."""
    rng = np.random.default_rng(0)
    return [
        2 - 1 / (1 + math.exp(-3 * math.log(rate / fall))) + (rate / blow_up) ** 2 + noise * float(rng.normal())
        for rate in RATES
    ]


@pytest.mark.parametrize("fall", [1e-4, 1e-3, 1e-2])
def test_the_steepest_rate_lies_where_the_loss_falls_and_the_valley_below_the_lowest_loss(fall: float) -> None:
    curve = curve_of(RATES, losses(fall=fall, blow_up=1.0, noise=0.002), is_cut=False)
    assert curve.steepest is not None and curve.valley is not None
    assert fall / 2 < curve.steepest < fall * 2
    lowest = curve.rates[int(np.argmin(curve.smoothed))]
    assert curve.valley < lowest
    assert curve.suggested == curve.valley


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    curve = curve_of(RATES, [1 + rate for rate in RATES], is_cut=False)
    assert (curve.steepest, curve.valley, curve.suggested) == (None, None, None)


def test_losses_that_are_not_finite_are_left_out_and_few_steps_suggest_nothing() -> None:
    curve = curve_of(RATES[:3], [2.0, 1.0, math.nan], is_cut=True)
    assert curve.losses == (2.0, 1.0) and curve.suggested is None and curve.is_cut
    assert curve_of(RATES[:1], [math.inf], is_cut=True).rates == ()


def test_averages_reach_to_both_sides_so_that_a_fall_is_not_moved() -> None:
    step = np.array([1.0] * 50 + [0.0] * 50)
    found = smoothed(step)
    assert found[49] + found[50] == pytest.approx(1.0)
    assert np.all(np.diff(found) <= 1e-12)


def test_the_longest_fall_may_leave_out_what_rises_between() -> None:
    assert longest_fall([5, 6, 4, 7, 3, 2, 9]) in ((0, 5), (1, 5))
    assert longest_fall([1, 2, 3]) == (0, 0)
    assert longest_fall([]) == (0, 0)


def test_a_loss_that_doubles_or_is_not_finite_has_run_away() -> None:
    assert has_run_away([1.0, math.nan])
    assert not has_run_away([1.0] * 20)
    assert has_run_away([1.0] * 20 + [3.0, 3.0, 3.0])
    assert not has_run_away([1.0, 9.0])  # of few steps nothing is known
