"""Confidence intervals against published values and their own promise."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("num_right", "count", "low", "high"),
    [
        (8, 10, 0.490, 0.943),
        (0, 10, 0.0, 0.278),
        (10, 10, 0.722, 1.0),
        (5, 10, 0.237, 0.763),
        (1, 1, 0.207, 1.0),
        # Source: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_known_values(num_right: int, count: int, low: float, high: float) -> None:
    found = wilson(num_right / count, count)
    assert found.value == num_right / count
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 29, 100, 1000, 12345])
def test_wilson_holds_its_value_and_stays_between_0_and_1(count: int) -> None:
    for num_right in {0, 1, count // 2, count - 1, count}:
        found = wilson(num_right / count, count)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


def test_wilson_of_nothing_is_everything() -> None:
    found = wilson(0.0, 0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_wilson_covers_the_truth_in_95_of_100() -> None:
    draws = np.random.default_rng(0).binomial(50, 0.8, 2000)
    covered = [found.low <= 0.8 <= found.high for found in (wilson(int(n) / 50, 50) for n in draws)]
    assert 0.92 < np.mean(covered) < 0.98


def test_bootstrap_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = bootstrap(lambda chosen: float(values[chosen].mean()), 400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - 1.96 / 20, abs=0.02),
        pytest.approx(values.mean() + 1.96 / 20, abs=0.02),
    )


def test_bootstrap_holds_its_value_even_where_resamples_lie_above() -> None:
    found = bootstrap(lambda chosen: 1 - len(set(chosen.tolist())) / 30, 30)  # every resample repeats images
    assert found.value == found.low == 0.0
    assert found.high > 0.3


def test_bootstrap_is_the_same_twice_and_depends_on_the_seed() -> None:
    values = np.random.default_rng(0).random(30)

    def mean(chosen: np.ndarray) -> float:
        return float(values[chosen].mean())

    assert bootstrap(mean, 30) == bootstrap(mean, 30)
    assert bootstrap(mean, 30) != bootstrap(mean, 30, seed=1)
