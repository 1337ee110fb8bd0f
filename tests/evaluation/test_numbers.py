"""R2 and errors of numbers against another implementation, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from finetune.evaluation.metrics import measure_task


def drawn(count: int, *, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    right = 50 + 10 * rng.normal(size=(count, 1))
    return torch.from_numpy((right + noise * rng.normal(size=right.shape)).astype(np.float32)), torch.from_numpy(
        right.astype(np.float32)
    )


def test_the_metrics_of_numbers_are_those_of_another_library() -> None:
    guesses, right = drawn(50, noise=4.0)
    found = measure_task("regress", guesses, right)
    assert found["r2"].value == pytest.approx(float(r2_score(guesses, right)), rel=1e-4)
    assert found["mae"].value == pytest.approx(float(mean_absolute_error(guesses, right)), rel=1e-5)
    assert found["rmse"].value == pytest.approx(float(mean_squared_error(guesses, right, squared=False)), rel=1e-5)


@pytest.mark.slow
def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth = 1 - 16 / 100  # squared errors over the variance of the numbers
    held = 0
    for seed in range(100):
        one = measure_task("regress", *drawn(200, noise=4.0, seed=seed))["r2"]
        held += one.low <= truth <= one.high
    assert held >= 85


def test_numbers_that_are_all_equal_explain_nothing() -> None:
    found = measure_task("regress", torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [3.0]]))
    assert found["r2"].value == 0 and found["mae"].value == 1.5
