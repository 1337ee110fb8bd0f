"""Runs compared by the score of their task: over seeds, on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.evaluation.compared import COMPARED
from finetune.evaluation.intervals import over_seeds, paired_over_seeds
from finetune.evaluation.labels import RankedImages
from finetune.evaluation.numbers import r2
from finetune.tasks import Task

N = 80


def drawn(task: Task, *noises: float) -> tuple[Any, Any]:
    """What seeds with so much noise say of 80 images, and what is right."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (N, 3)).astype(float) if task == "multilabel" else rng.normal(size=(N, 1))
    return np.stack([right + noise * rng.normal(size=right.shape) for noise in noises]), right


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_a_score_is_the_mean_of_those_of_the_seeds(task: Task) -> None:
    said, right = drawn(task, 0.5, 1.0, 0.7)
    one = {
        "multilabel": lambda outputs: RankedImages.of(outputs, right > 0).mean(),
        "regress": lambda outputs: r2(outputs[:, 0], right[:, 0], np.ones(N)),
    }[task]
    found = COMPARED[task].score(said, right, None)
    assert found.value == pytest.approx(np.mean([one(outputs) for outputs in said]))
    assert found.low < found.value < found.high <= 1


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_differences_are_paired(task: Task) -> None:
    """What two runs have in common tells nothing of who is better: the interval is narrower than theirs."""
    (one,), right = drawn(task, 0.6)
    worse = one + 0.1 * np.random.default_rng(1).normal(size=one.shape)
    found = COMPARED[task].difference(one[None], worse[None], right, None)
    alone = COMPARED[task].score(one[None], right, None)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    same = COMPARED[task].difference(one[None], one[None], right, None)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    (far,), _ = drawn(task, 3.0)
    assert COMPARED[task].difference(one[None], far[None], right, None).low > 0


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_seeds_that_disagree_and_images_that_are_alike_widen_an_interval(task: Task) -> None:
    said, right = drawn(task, 0.1, 1.5, 0.5)
    together = COMPARED[task].score(said, right, None)
    one = COMPARED[task].score(said[2:], right, None)
    assert together.high - together.low > one.high - one.low
    units = [place // 8 for place in range(N)]
    said[2][:8], right[:8] = said[2][0], right[0]  # copies
    pair = [COMPARED[task].score(said[2:], right, of) for of in (None, units)]
    assert pair[0].value == pair[1].value and pair[0].high - pair[0].low != pair[1].high - pair[1].low


def test_an_r2_below_zero_is_no_error() -> None:
    said, right = drawn("regress", 3.0, 4.0)
    found = COMPARED["regress"].score(said, right, None)
    assert found.low < found.value < 0


def test_one_class_is_compared_by_shares_of_right_images() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, N).astype(str)
    said, others = rng.integers(0, 3, (2, N)).astype(str), np.stack([right] * 2)
    assert COMPARED["classify"].score(said, right, None) == over_seeds(said == right)
    expected = paired_over_seeds(others == right, said == right)
    assert COMPARED["classify"].difference(others, said, right, None) == expected
