"""What a classifier knows of, and when it had better pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.features.knowledge import Knowledge, unit_rows


def drawn(count: int, *, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 1


def of_val(nearness: list[float], confidence: list[float], hits: list[bool]) -> Knowledge:
    return Knowledge(unit_rows(drawn(8)), np.array(nearness), np.array(confidence), np.array(hits, dtype=bool))


def test_how_near_an_image_is_is_its_mean_cosine_to_the_five_nearest() -> None:
    train, asked = drawn(20), drawn(3, seed=1)
    found = Knowledge(unit_rows(train), np.ones(1), np.ones(1), np.ones(1, dtype=bool)).near(asked)
    cosines = cosine_similarity(asked[:, None], train[None], dim=2)
    assert found == pytest.approx(cosines.sort(descending=True).values[:, :5].mean(dim=1).numpy(), abs=2e-3)  # float16


def test_of_fewer_than_five_all_are_asked() -> None:
    known = Knowledge(unit_rows(drawn(2)), np.ones(1), np.ones(1), np.ones(1, dtype=bool))
    assert known.near(drawn(2)).shape == (2,)


levels = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda values: np.array(values) / 6)


@given(levels, st.floats(0.01, 1), st.integers(0, 10))
def test_the_asked_share_of_val_is_answered_and_not_more_than_ties_make(
    nearness: NDArray[np.float64], coverage: float, seed: int
) -> None:
    confidence = np.random.default_rng(seed).permutation(nearness)
    known = Knowledge(unit_rows(drawn(8)), nearness, confidence, np.ones(len(nearness), dtype=bool))
    reasons = known.reasons(nearness, confidence, coverage=coverage)
    usual, border = known.usual(nearness, confidence), known.border(coverage)
    answered = np.array([not reason for reason in reasons])
    assert answered.mean() >= coverage - 1e-12
    assert (usual[answered] >= border).all() and (usual[~answered] < border).all()
    assert (usual > border).mean() < coverage  # a higher border would answer too few


def test_the_reason_is_what_is_unusual() -> None:
    known = of_val([0.1, 0.5, 0.6, 0.7, 0.8] * 4, [0.3, 0.9, 0.95, 0.8, 0.99] * 4, [False, True, True, True, True] * 4)
    far, torn, fine, both = (0.05, 0.99), (0.8, 0.2), (0.8, 0.99), (0.05, 0.2)
    nearness, confidence = (np.array(column) for column in zip(far, torn, fine, both, strict=True))
    assert known.reasons(nearness, confidence, coverage=0.8) == [
        "unlike what was trained on",
        "between classes",
        "",
        "unlike what was trained on",
    ]


def test_where_an_image_has_no_single_class_nearness_alone_counts() -> None:
    known = of_val([0.1, 0.5, 0.6, 0.7], [], [])
    asked = np.array([0.05, 0.9])
    assert known.reasons(asked, np.zeros(2), coverage=0.75) == ["unlike what was trained on", ""]
    assert known.accuracies() == []


def test_the_fewer_are_answered_the_more_are_right() -> None:
    known = of_val([0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.6], [True, True, True, False])
    assert known.accuracies() == [(0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 0.75)]


def test_images_that_are_as_usual_as_one_another_are_answered_together() -> None:
    known = of_val([0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.9, 0.9], [False, True, True, True])
    assert known.accuracies() == [(0.5, 1.0), (1.0, 0.75)]
