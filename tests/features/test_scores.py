"""The scores are what their formulas say, computed a second time by force; and they rank as they should."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.errors import TrainingError
from finetune.features import scores
from finetune.features.scores import h_score, knn_top1, logme

SHAPES = [(60, 5), (40, 100), (30, 30)]


def clouds(
    *, count: int = 60, width: int = 5, num_classes: int = 3, distance: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (count,), generator=generator)
    centres = torch.randn(num_classes, width, generator=generator) * distance
    return centres[targets] + torch.randn(count, width, generator=generator) + 0.5, targets


def dense_evidence(features: np.ndarray, label: np.ndarray, alpha: float, beta: float) -> float:
    """The log density of the labels under the normal distribution that the model gives them."""
    covariance = np.eye(len(label)) / beta + features @ features.T / alpha
    _, log_determinant = np.linalg.slogdet(covariance)
    distance = label @ np.linalg.solve(covariance, label)
    return -0.5 * (log_determinant + distance + len(label) * math.log(2 * math.pi))


def by_force(features: Tensor, targets: Tensor, *, steps: int = 9, zooms: int = 14) -> float:
    """Maximise the dense evidence over a grid of alpha and beta that shrinks around its best point."""
    rows, found = features.double().numpy(), []
    for label in sorted(set(targets.tolist())):
        y = (targets == label).double().numpy()
        centre, reach = np.array([0.0, 1.0]), 6.0
        for _ in range(zooms):
            trials = [centre + reach * np.array(step) for step in product(np.linspace(-1, 1, steps), repeat=2)]
            values = [dense_evidence(rows, y, 10 ** trial[0], 10 ** trial[1]) for trial in trials]
            centre, reach = trials[int(np.argmax(values))], reach * 0.6
        found.append(max(values) / len(y))
    return sum(found) / len(found)


def fixed_point(features: Tensor, targets: Tensor, *, rounds: int = 2000) -> float:
    """The evidence maximisation of the paper: alpha and beta set from each other until they stand still."""
    rows, found = features.double().numpy(), []
    count, width = rows.shape
    for label in sorted(set(targets.tolist())):
        y = (targets == label).double().numpy()
        alpha = beta = 1.0
        for _ in range(rounds):
            precision = alpha * np.eye(width) + beta * rows.T @ rows
            mean = beta * np.linalg.solve(precision, rows.T @ y)
            gamma = width - alpha * np.trace(np.linalg.inv(precision))
            new = gamma / (mean @ mean), (count - gamma) / np.sum((rows @ mean - y) ** 2)
            is_still = np.allclose(new, (alpha, beta), rtol=1e-9)
            alpha, beta = new
            if is_still:
                break
        found.append(dense_evidence(rows, y, alpha, beta) / count)
    return sum(found) / len(found)


@pytest.mark.parametrize(("count", "width"), [(40, 5), (25, 60)])
def test_logme_is_the_largest_evidence_that_a_search_finds(count: int, width: int) -> None:
    features, targets = clouds(count=count, width=width)
    wanted = by_force(features, targets)
    assert logme(features, targets) == pytest.approx(wanted, abs=1e-4)
    assert logme(features, targets) >= wanted - 1e-7


@pytest.mark.parametrize(("count", "width"), [(60, 5), (90, 60), (30, 30)])
def test_logme_is_what_the_fixed_point_of_the_paper_finds(count: int, width: int) -> None:
    features, targets = clouds(count=count, width=width, distance=0.7)
    assert logme(features, targets) == pytest.approx(fixed_point(features, targets), abs=1e-5)


def dense_h_score(features: Tensor, targets: Tensor, *, shrinkage: float | None = None) -> float:
    """The traces as they are written, on D x D matrices, with the shrinkage summed image by image."""
    rows = features.double().numpy() - features.double().numpy().mean(axis=0)
    count, width = rows.shape
    covariance = rows.T @ rows / count
    target = np.trace(covariance) / width * np.eye(width)
    if shrinkage is None:
        spread = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in rows) / count**2
        shrinkage = min(1.0, spread / np.sum((covariance - target) ** 2))
    means = np.stack([rows[targets.numpy() == label].mean(axis=0) for label in targets.tolist()])
    between = means.T @ means / count
    shrunk = (1 - shrinkage) * covariance + shrinkage * target
    return float((1 - shrinkage) * np.trace(np.linalg.pinv(shrunk, rcond=1e-10, hermitian=True) @ between))


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_h_score_is_the_trace_of_its_formula(count: int, width: int) -> None:
    features, targets = clouds(count=count, width=width)
    assert h_score(features, targets) == pytest.approx(dense_h_score(features, targets), rel=1e-9)


def test_h_score_comes_to_the_plain_one_with_many_images() -> None:
    features, targets = clouds(count=5000)
    assert h_score(features, targets) == pytest.approx(dense_h_score(features, targets, shrinkage=0.0), rel=0.02)


def test_the_plain_h_score_takes_noise_for_signal_and_this_one_does_not() -> None:
    noise, targets = clouds(count=40, width=100, distance=0.0)
    signal, labels = clouds(count=40, width=100, distance=1.0)
    assert dense_h_score(noise, targets, shrinkage=0.0) == pytest.approx(2.0, abs=1e-6)
    assert dense_h_score(signal, labels, shrinkage=0.0) == pytest.approx(2.0, abs=1e-6)
    assert h_score(noise, targets) < 0.5 * h_score(signal, labels)


def plain_knn(features: Tensor, targets: Tensor, neighbours: int) -> float:
    hits = 0
    for left, row in enumerate(features):
        others = [i for i in range(len(features)) if i != left]
        cosines = {i: float(torch.cosine_similarity(row.double(), features[i].double(), dim=0)) for i in others}
        votes: dict[int, float] = {}
        for i in sorted(others, key=lambda i: -cosines[i])[:neighbours]:
            votes[int(targets[i])] = votes.get(int(targets[i]), 0.0) + math.exp(cosines[i] / 0.07)
        hits += max(votes, key=lambda label: votes[label]) == int(targets[left])
    return hits / len(features)


@pytest.mark.parametrize("neighbours", [1, 5, 10, 100])
def test_knn_is_what_a_loop_over_neighbours_gives(neighbours: int) -> None:
    features, targets = clouds(count=50, distance=0.7)
    found = knn_top1(features, targets, neighbours=neighbours)
    assert found == pytest.approx(plain_knn(features, targets, neighbours))
    assert 0.3 < found < 1


def test_an_image_is_no_neighbour_of_its_own() -> None:
    features = torch.eye(8)
    assert knn_top1(features, torch.arange(8), neighbours=1) == 0.0
    assert knn_top1(torch.cat([features, features]), torch.arange(8).repeat(2), neighbours=1) == 1.0


@pytest.mark.parametrize("score", [logme, h_score, knn_top1])
@pytest.mark.parametrize("width", [4, 200])
def test_features_that_separate_better_score_higher(score, width: int) -> None:
    found = [score(*clouds(count=90, width=width, distance=distance)) for distance in (0.0, 0.5, 3.0)]
    assert found == sorted(found)
    assert found[0] < found[2]


@pytest.mark.parametrize("score", [logme, h_score, knn_top1])
def test_scale_does_not_matter_nor_constant_features_nor_numbers_of_absent_classes(score) -> None:
    features, targets = clouds(count=40, width=60)
    wanted = score(features, targets)
    assert score(features * 1e4, targets) == pytest.approx(wanted, abs=1e-5)
    assert score(features * 1e-4, targets) == pytest.approx(wanted, abs=1e-5)
    assert score(features, targets * 3 + 2) == pytest.approx(wanted, abs=1e-9)
    assert math.isfinite(score(torch.zeros(40, 60), targets))
    assert math.isfinite(score(torch.nn.functional.one_hot(targets).float(), targets))
    assert math.isfinite(score(torch.ones(40, 1), targets))


@pytest.mark.parametrize("score", [logme, h_score, knn_top1])
def test_features_that_are_not_finite_are_an_error(score) -> None:
    features, targets = clouds()
    features[3, 1] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        score(features, targets)


def class_by_class(features: Tensor, targets: Tensor) -> float:
    """LogME with a grid of its own for each class, in the basis of the singular vectors."""
    left, singular, _ = torch.linalg.svd(features.double(), full_matrices=False)
    values, count, found = singular**2, len(targets), []
    for label in sorted(set(targets.tolist())):
        y = (targets == label).double()
        turned, low, high = (left.T @ y) ** 2, -12.0, 8.0
        for _ in range(3):
            powers = torch.linspace(low, high, 65, dtype=torch.double)
            trials = []
            for power in powers:
                kept = 10**power * values[0] / (10**power * values[0] + values)
                error = max(kept @ turned + max(y.sum() - turned.sum(), 0), 1e-12 * y.sum())
                trials.append(float(kept.log().sum() - count * math.log(2 * math.pi * error / count) - count) / 2)
            place = int(np.argmax(trials))
            low, high = float(powers[max(place - 1, 0)]), float(powers[min(place + 1, 64)])
        found.append(max(trials))
    return sum(found) / len(found) / count


@pytest.mark.parametrize(("count", "width", "num_classes"), [(60, 5, 3), (120, 40, 30), (80, 200, 20), (50, 50, 1)])
def test_logme_of_all_classes_together_is_that_of_each_by_itself(count: int, width: int, num_classes: int) -> None:
    features, targets = clouds(count=count, width=width, num_classes=num_classes, distance=0.7)
    assert logme(features, targets) == pytest.approx(class_by_class(features, targets), rel=1e-9)


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_knn_some_images_at_a_time_is_that_of_all_at_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    features, targets = clouds(count=50, distance=0.7)
    units = [place // 3 for place in range(50)]
    wanted = knn_top1(features, targets), knn_top1(features, targets, units=units)
    monkeypatch.setattr(scores, "ROWS_AT_ONCE", rows)
    assert (knn_top1(features, targets), knn_top1(features, targets, units=units)) == wanted
    assert wanted[0] != wanted[1]
