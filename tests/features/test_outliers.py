"""Odd images: far from all others, and few where nothing is odd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.errors import TrainingError
from finetune.features import outliers
from finetune.features.outliers import odd_ones


def cloud(count: int, *, seed: int = 0, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * 0.3 + 1


def test_what_is_far_from_all_is_found_first_and_nothing_else() -> None:
    features = cloud(200)
    features[7] = -features[7]
    features[50, ::2] *= -1
    found = odd_ones(features, torch.arange(200) % 2, list(range(200)), seed=0)
    assert {one.place for one in found} == {7, 50}
    assert found[0].deviations >= found[1].deviations > outliers.FAR
    assert all(one.distance > one.usual > 0 for one in found)


def test_two_copies_of_an_odd_picture_do_not_hide_each_other() -> None:
    features = cloud(100)
    features[3] = features[4] = -features[3]
    apart = odd_ones(features, torch.zeros(100, dtype=torch.long), [*range(4), 3, *range(5, 100)], seed=0)
    assert [one.place for one in apart] == [3]


def test_a_class_is_measured_by_its_own_usual_distance() -> None:
    wide = cloud(100, seed=1) + torch.randn(100, 24, generator=torch.Generator().manual_seed(2))
    features = torch.cat([cloud(100), wide])
    targets = torch.arange(200) // 100
    assert len(odd_ones(features, targets, list(range(200)), seed=0)) <= 2
    assert len(odd_ones(features, torch.zeros(200, dtype=torch.long), list(range(200)), seed=0)) <= 2


@pytest.mark.parametrize("count", [1, 5])
def test_of_a_handful_none_is_odd(count: int) -> None:
    assert odd_ones(cloud(count), torch.zeros(count, dtype=torch.long), list(range(count)), seed=0) == []


def test_near_copies_of_one_picture_are_not_odd() -> None:
    same = torch.ones(50, 24) + 1e-6 * cloud(50)
    assert odd_ones(same, torch.zeros(50, dtype=torch.long), list(range(50)), seed=0) == []


def test_a_large_set_is_compared_with_a_drawn_part(monkeypatch: pytest.MonkeyPatch) -> None:
    features = cloud(300)
    features[7] = -features[7]
    monkeypatch.setattr(outliers, "MOST_COMPARED", 100)
    monkeypatch.setattr(outliers, "ROWS_AT_ONCE", 64)
    found = odd_ones(features, torch.zeros(300, dtype=torch.long), list(range(300)), seed=0)
    assert [one.place for one in found] == [7]


def test_features_that_are_not_finite_are_an_error() -> None:
    features = cloud(20)
    features[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        odd_ones(features, torch.zeros(20, dtype=torch.long), list(range(20)), seed=0)


def one_by_one(features: torch.Tensor, targets: torch.Tensor) -> list[int]:
    """The odd ones by their definition, the farthest first."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-torch.inf)
    logs = np.log((1 - cosines.topk(outliers.NEIGHBOURS, dim=1).values.mean(dim=1)).numpy())
    deviations = {}
    for place, label in enumerate(targets.tolist()):
        own = logs[targets.numpy() == label]
        usual = own if len(own) >= outliers.FEWEST else logs
        spread = max(1.4826 * np.median(np.abs(usual - np.median(usual))), outliers.NARROW)
        deviations[place] = (logs[place] - np.median(usual)) / spread
    far = [place for place, found in deviations.items() if found > outliers.FAR]
    return sorted(far, key=lambda place: -deviations[place])


def test_small_classes_are_measured_by_all_images_and_large_ones_by_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 8, generator=generator) + 2 * (torch.rand(300, 1, generator=generator) < 0.9)
    targets = (torch.rand(300, generator=generator) ** 2 * 30).long() * 3  # numbers of classes that never occur between
    sizes = torch.bincount(targets)[targets]
    found = [one.place for one in odd_ones(features, targets, list(range(300)), seed=0)]
    assert found == one_by_one(features, targets)
    assert {bool(sizes[place] < outliers.FEWEST) for place in found} == {True, False}
