"""Confidence intervals against published values and their own promise."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluation.intervals import (
    bootstrap,
    over_fold_values,
    over_seed_values,
    over_seeds,
    paired,
    paired_over_seeds,
    t95,
    wilson,
)
from finetune.types import Interval


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


def judged(*, both: int, one: int, other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, one, other, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_paired_is_the_formula_with_half_an_image_more_in_every_cell() -> None:
    found = paired(*judged(both=53, one=16, other=8, neither=9))
    share = np.array([16.5, 8.5]) / 88
    middle, half = share[0] - share[1], 1.959964 * np.sqrt((share.sum() - (share[0] - share[1]) ** 2) / 88)
    assert found.value == pytest.approx(8 / 86)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_paired_turns_round_with_its_sides_and_holds_its_value() -> None:
    for cells in [(0, 0, 0, 5), (5, 0, 0, 0), (0, 1, 0, 0), (0, 7, 0, 0), (3, 2, 9, 1), (400, 30, 2, 60)]:
        one, other = judged(both=cells[0], one=cells[1], other=cells[2], neither=cells[3])
        found, turned = paired(one, other), paired(other, one)
        assert -1 <= found.low <= found.value <= found.high <= 1
        assert (found.value, found.low, found.high) == (-turned.value, -turned.high, -turned.low)


def test_paired_tells_apart_what_two_separate_intervals_leave_open() -> None:
    one, other = judged(both=800, one=40, other=10, neither=150)
    assert paired(one, other).low > 0
    assert wilson(0.84, 1000).low < wilson(0.81, 1000).high


def test_paired_covers_the_truth_in_95_of_100() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        draws = generator.choice(4, 60, p=[0.6, 0.2, 0.1, 0.1])
        found = paired(np.isin(draws, (0, 1)), np.isin(draws, (0, 2)))
        covered.append(found.low <= 0.1 <= found.high)
    assert 0.92 < np.mean(covered) < 0.98


def drawn(seeds: int, images: int, *, share: float = 0.7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, images)) < share


def test_t_has_the_values_of_the_tables() -> None:
    known = {1: 12.706, 2: 4.303, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 10: 2.228, 30: 2.042, 1000: 1.962}
    assert {freedom: t95(freedom) for freedom in known} == pytest.approx(known, abs=0.002)


def test_one_seed_has_the_interval_of_its_images() -> None:
    hits = drawn(1, 80)
    assert over_seeds(hits) == wilson(float(hits.mean()), 80)
    other = drawn(1, 80, seed=1)
    assert paired_over_seeds(hits, other) == paired(hits[0], other[0])


def test_seeds_that_agree_leave_the_interval_of_the_images() -> None:
    hits = np.repeat(drawn(1, 80), 3, axis=0)
    found, alone = over_seeds(hits), wilson(float(hits.mean()), 80)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_seeds_that_differ_widen_it_by_their_t_interval() -> None:
    hits = np.zeros((2, 100), dtype=bool)
    hits[0, :60], hits[1, :40] = True, True
    found, images = over_seeds(hits), wilson(0.5, 100)
    seeds = 12.706 * np.std([0.6, 0.4], ddof=1) / np.sqrt(2)
    assert found.low == max(0, 0.5 - np.hypot(0.5 - images.low, seeds))
    assert found.value == 0.5


def test_paired_over_seeds_turns_round_and_crosses_zero_where_seeds_disagree() -> None:
    one, other = drawn(3, 200, share=0.9), drawn(3, 200, share=0.6, seed=1)
    found, turned = paired_over_seeds(one, other), paired_over_seeds(other, one)
    assert found.low > 0
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))
    wavering = np.stack([one[0], other[1]])
    assert paired_over_seeds(wavering, np.stack([other[0], one[1]])).low < 0


def test_a_bootstrap_by_unit_of_altered_copies_is_as_wide_as_that_of_the_photos() -> None:
    photos = np.random.default_rng(0).random(40)
    copies, units = photos.repeat(4), [place // 4 for place in range(160)]
    one = bootstrap(lambda chosen: float(photos[chosen].mean()), 40)
    four = bootstrap(lambda chosen: float(copies[chosen].mean()), 160, units)
    taken_for_160 = bootstrap(lambda chosen: float(copies[chosen].mean()), 160)
    assert (four.low, four.high) == (pytest.approx(one.low), pytest.approx(one.high))
    assert taken_for_160.high - taken_for_160.low < 0.7 * (four.high - four.low)


def test_the_interval_over_folds_counts_that_they_share_train_images() -> None:
    values = [0.8, 0.9, 0.85, 0.75]
    found = over_fold_values(values)
    half = t95(3) * float(np.std(values, ddof=1)) * (1 / 4 + 1 / 3) ** 0.5
    assert (found.value, found.high - found.value) == (pytest.approx(0.825), pytest.approx(half))
    assert found.value - found.low == pytest.approx(half)


def test_the_interval_over_seeds_is_no_narrower_than_that_of_the_images_or_that_of_the_seeds() -> None:
    alike = [Interval(0.8, 0.7, 0.88)] * 3
    found = over_seed_values(alike)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.7, 0.88))
    spread = [Interval(value, value - 0.1, value + 0.08) for value in (0.7, 0.8, 0.9)]
    wide = over_seed_values(spread)
    assert wide.high - wide.value > t95(2) * 0.1 / 3**0.5
    assert over_seed_values(spread[:1]) == spread[0]
