"""The linear classifiers are what they say: solved to convergence, and left out for real."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from finetune.errors import TrainingError
from finetune.features import probe as probes
from finetune.features import ridge as ridges
from finetune.features.probe import STRENGTHS, UNJUDGED, Probe, fit_probe, folds
from finetune.features.ridge import RIDGES, loo_guesses
from tests.support import loo_ridge


def clouds(
    *, count: int = 60, width: int = 5, num_classes: int = 3, distance: float = 1.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return overlapping clouds of features, columns of unequal scale and place, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % num_classes
    centres = torch.randn(num_classes, width, generator=generator) * distance
    features = centres[targets] + torch.randn(count, width, generator=generator)
    return (features + torch.linspace(-5, 5, width)) * torch.logspace(-0.3, 0.3, width), targets


def brought_to_scale(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scaling by its formula, of one layer group without constant features."""
    features = features.double()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    divisors = torch.maximum(std, std.square().mean().sqrt())
    return (features - mean) / divisors, mean, divisors


def objective(scaled: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    penalty = strength / (2 * scaled.shape[1]) * weight.square().sum()
    return cross_entropy(scaled @ weight.T + bias, targets) + penalty


def unfolded(probe: Probe, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    return probe.weight.double() * std, probe.bias.double() + probe.weight.double() @ mean


def hits(probe: Probe, features: Tensor, targets: Tensor) -> float:
    return float(((features @ probe.weight.T + probe.bias).argmax(dim=1) == targets).float().mean())


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("count", "width"), [(60, 5), (40, 100)])
def test_the_gradient_vanishes_at_the_solution(
    monkeypatch: pytest.MonkeyPatch, strength: float, count: int, width: int
) -> None:
    monkeypatch.setattr(probes, "STRENGTHS", (strength,))
    features, targets = clouds(count=count, width=width)
    probe = fit_probe(features, targets, num_classes=3)
    scaled, mean, std = brought_to_scale(features)
    weight, bias = (tensor.requires_grad_() for tensor in unfolded(probe, mean, std))
    objective(scaled, targets, weight, bias, strength).backward()
    assert probe.strength == strength
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 2e-4


def test_the_solution_is_that_of_gradient_descent_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "STRENGTHS", (1.0,))
    features, targets = clouds()
    probe = fit_probe(features, targets, num_classes=3)
    scaled, mean, std = brought_to_scale(features)
    weight, bias = torch.zeros(3, 5, dtype=torch.double), torch.zeros(3, dtype=torch.double)
    for _ in range(2000):
        error = (scaled @ weight.T + bias).softmax(dim=1) - one_hot(targets, 3)  # the gradient by hand
        weight -= 0.5 * (error.T @ scaled / len(scaled) + weight / 5)
        bias -= 0.5 * error.mean(dim=0)
    found, offset = unfolded(probe, mean, std)
    assert torch.allclose(found, weight, atol=1e-3)
    assert torch.allclose(offset - offset.mean(), bias - bias.mean(), atol=1e-3)


def test_the_scaling_is_folded_exactly() -> None:
    features, targets = clouds()
    probe = fit_probe(features, targets, num_classes=3)
    scaled, mean, std = brought_to_scale(features)
    weight, bias = unfolded(probe, mean, std)
    raw = features @ probe.weight.T + probe.bias
    assert torch.allclose(raw.double(), scaled @ weight.T + bias, atol=1e-3)
    assert probe.weight.dtype == probe.bias.dtype == torch.float32


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    features, targets = clouds()
    one = fit_probe(features, targets, num_classes=3)
    other = fit_probe(features * 64 + 8, targets, num_classes=3)
    assert (one.strength, one.top1) == (other.strength, other.top1)
    logits, moved = features @ one.weight.T + one.bias, (features * 64 + 8) @ other.weight.T + other.bias
    assert torch.allclose(logits, moved, atol=0.02)
    tiny = fit_probe(features * 1e-9, targets, num_classes=3)
    assert (tiny.strength, tiny.top1) == (one.strength, one.top1)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 100.1, -12345.678])
def test_a_feature_that_is_constant_has_no_weight(value: float) -> None:
    features, targets = clouds(count=999)
    plain = fit_probe(features, targets, num_classes=3)
    probe = fit_probe(torch.cat([features, torch.full((999, 2), value)], dim=1), targets, num_classes=3)
    assert torch.equal(probe.weight[:, 5:], torch.zeros(3, 2))
    assert abs(probe.top1 - plain.top1) < 0.01
    assert hits(probe, torch.cat([features, torch.full((999, 2), value + 5)], dim=1), targets) > 0.8


def test_no_feature_varies_and_the_guess_is_the_largest_class() -> None:
    targets = torch.tensor([0, 1, 1, 1, 2, 1, 0, 1])
    probe = fit_probe(torch.ones(8, 4), targets, num_classes=3)
    assert not probe.weight.any()
    assert int(probe.bias.argmax()) == 1
    assert torch.allclose(probe.bias.softmax(dim=0), torch.tensor([2, 5, 1]) / 8, atol=1e-3)


def test_what_can_be_separated_is_and_cross_validation_says_so() -> None:
    features, targets = clouds(distance=20)
    probe = fit_probe(features, targets, num_classes=3)
    assert hits(probe, features, targets) == probe.top1 == 1.0


def test_cross_validation_is_not_fooled_by_noise_that_can_be_learnt_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(100, 300, generator=generator), torch.arange(100) % 2
    probe = fit_probe(features, targets, num_classes=2)
    assert hits(probe, features, targets) > 0.95
    assert probe.top1 < 0.65
    assert probe.strength >= 1


def test_the_strength_is_the_one_that_serves_best_on_other_images() -> None:
    features, targets = clouds(width=40, distance=0.5)
    chosen = fit_probe(features, targets, num_classes=3)
    fresh, labels = clouds(count=3000, width=40, distance=0.5)
    losses = {}
    for strength in STRENGTHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probes, "STRENGTHS", (strength,))
            probe = fit_probe(features, targets, num_classes=3)
        losses[strength] = float(cross_entropy(fresh @ probe.weight.T + probe.bias, labels))
    assert losses[chosen.strength] < 1.3 * min(losses.values())
    assert max(losses.values()) > 2 * min(losses.values())


def test_the_same_seed_gives_the_same_bits_whoever_draws_meanwhile() -> None:
    features, targets = clouds()
    torch.manual_seed(1)
    one = fit_probe(features, targets, num_classes=3)
    torch.rand(5)
    np.random.rand(5)
    other = fit_probe(features, targets, num_classes=3)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    assert one.top1 == other.top1


def test_the_search_takes_a_sample_and_the_fit_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = clouds(count=300)
    whole = fit_probe(features, targets, num_classes=3)
    monkeypatch.setattr(probes, "MOST_FOR_SEARCH", 47)
    sampled = fit_probe(features, targets, num_classes=3)
    assert sampled.top1 * 47 == pytest.approx(round(sampled.top1 * 47))
    assert whole.top1 * 47 != pytest.approx(round(whole.top1 * 47))
    assert hits(sampled, features, targets) == pytest.approx(hits(whole, features, targets), abs=0.05)


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 2], [0, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 0, 3]])
def test_few_images_and_classes_of_one_give_finite_weights(labels: list[int]) -> None:
    for seed in range(3):
        features = torch.randn(len(labels), 7, generator=torch.Generator().manual_seed(seed))
        probe = fit_probe(features, torch.tensor(labels), num_classes=5, seed=seed)
        assert torch.isfinite(probe.weight).all(), seed
        assert torch.isfinite(probe.bias).all(), seed
        assert 0 <= probe.top1 <= 1, seed
        assert hits(probe, features, torch.tensor(labels)) == 1 or probe.strength > 0.1, seed
        assert 0 <= loo_ridge(features, torch.tensor(labels)) <= 1, seed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_an_error(value: float) -> None:
    features, targets = clouds()
    features[7, 2] = value
    for measure in (partial(fit_probe, num_classes=3), loo_ridge):
        with pytest.raises(TrainingError, match="not finite") as caught:
            measure(features, targets)
        assert "float32" in caught.value.hint


def explicit_loo(features: Tensor, targets: Tensor, ridge: float, num_classes: int) -> float:
    """Fit the ridge classifier and its means anew without each image, in the primal, and ask it about that image."""
    scaled, _, _ = brought_to_scale(features)
    count, width = scaled.shape
    labels = one_hot(targets, num_classes).double() * 2 - 1
    num_right = 0
    for left in range(count):
        kept = [index for index in range(count) if index != left]
        centre, mean = scaled[kept].mean(dim=0), labels[kept].mean(dim=0)
        centred = scaled[kept] - centre
        gram = centred.T @ centred / width + ridge * count * torch.eye(width, dtype=torch.double)
        weight = torch.linalg.solve(gram, centred.T @ (labels[kept] - mean) / width)
        num_right += int(((scaled[left] - centre) @ weight + mean).argmax() == targets[left])
    return num_right / count


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize(("count", "width", "num_classes"), [(40, 6, 3), (36, 60, 4), (30, 3, 2)])
def test_leave_one_out_is_what_refitting_without_each_image_gives(
    monkeypatch: pytest.MonkeyPatch, ridge: float, count: int, width: int, num_classes: int
) -> None:
    monkeypatch.setattr(ridges, "RIDGES", (ridge,))
    distance = 0.6 if width < count else 0.4
    features, targets = clouds(count=count, width=width, num_classes=num_classes, distance=distance)
    wanted = explicit_loo(features, targets, ridge, num_classes)
    assert loo_ridge(features, targets) == pytest.approx(wanted)
    assert 0 < wanted < 1  # so that single images count


@pytest.mark.parametrize(("count", "width"), [(40, 500), (60, 60), (100, 2048), (100, 5)])
def test_leave_one_out_is_not_fooled_by_noise(count: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(count, width, generator=generator), torch.arange(count) % 4
    assert loo_ridge(features, targets) < 0.45


def test_leave_one_out_takes_the_best_strength() -> None:
    features, targets = clouds(count=40, width=30, distance=0.5)
    each = [explicit_loo(features, targets, ridge, 3) for ridge in RIDGES]
    assert len(set(each)) > 1
    assert loo_ridge(features, targets) == pytest.approx(max(each))


def test_leave_one_out_does_not_mind_scale_place_and_constants() -> None:
    features, targets = clouds(count=45, distance=0.7)
    wanted = loo_ridge(features, targets)
    assert loo_ridge(features * 128 - 16, targets) == wanted
    constant = torch.full((45, 1), 100.1)
    wider = torch.cat([features, constant], dim=1)
    assert abs(loo_ridge(wider, targets) - wanted) < 0.1
    assert 0.4 < wanted < 1


def test_folds_are_a_stratified_partition_that_depends_on_the_seed_alone() -> None:
    targets = torch.cat([torch.zeros(23), torch.ones(11), torch.full((2,), 2), torch.full((1,), 3)]).long()
    found = folds(targets, seed=0)
    assert sorted(torch.cat(found).tolist()) == list(range(37))
    for label in range(4):
        counts = [int((targets[fold] == label).sum()) for fold in found]
        assert max(counts) - min(counts) <= 1
    assert all(torch.equal(a, b) for a, b in zip(found, folds(targets, seed=0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, folds(targets, seed=1), strict=True) if len(a) == len(b))


def test_selection_drops_what_tells_nothing_and_the_rest_is_solved_alone() -> None:
    telling, targets = clouds(count=120, width=8, distance=0.7)
    noise = torch.randn(120, 152, generator=torch.Generator().manual_seed(1))
    features = torch.cat([noise, telling], dim=1)
    probe = fit_probe(features, targets, num_classes=3, is_selective=True)
    kept = (probe.weight != 0).any(dim=0)
    assert probe.share < 1
    assert kept.sum() == round(probe.share * 160)
    assert kept[-8:].sum() >= 7
    assert kept[:-8].float().mean() < 0.5
    fresh, wanted = clouds(count=300, width=8, distance=0.7)
    more = torch.cat([torch.randn(300, 152, generator=torch.Generator().manual_seed(2)), fresh], dim=1)
    whole = fit_probe(features, targets, num_classes=3)
    assert hits(probe, more, wanted) > hits(whole, more, wanted)


def test_where_every_feature_tells_all_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    features = torch.randn(90, 40, generator=generator) + torch.randn(3, 40, generator=generator)[targets] * 0.4
    probe = fit_probe(features, targets, num_classes=3, is_selective=True)
    assert (probe.weight != 0).any(dim=0).float().mean() == probe.share
    assert probe.share >= 0.5


def kernel_loo(features: Tensor, targets: Tensor, units: list[int], num_classes: int) -> Tensor:
    """The guesses without each unit by the formula on the N x N kernel, a column for every class, unit by unit."""
    scaled, _, _ = brought_to_scale(features)
    count = len(scaled)
    labels = one_hot(targets, num_classes).double() * 2 - 1
    values, vectors = torch.linalg.eigh(scaled @ scaled.T / scaled.shape[1])
    best, guesses = -1.0, targets
    for strength in (count * ridge for ridge in RIDGES):
        inverse = vectors @ torch.diag(1 / (values.clamp_min(0) + strength)) @ vectors.T
        solved = inverse @ (labels - labels.mean(dim=0))
        guessed = torch.full((count,), -1)
        for unit in set(units):
            held = torch.tensor([place for place, own in enumerate(units) if own == unit])
            block = inverse[held][:, held] - 1 / (count * strength)
            guessed[held] = (labels[held] - torch.linalg.solve(block, solved[held])).argmax(dim=1)
        top1 = float((guessed == targets).double().mean())
        if top1 > best:
            best, guesses = top1, guessed
    return guesses


@pytest.mark.parametrize("per_unit", [0, 1, 3, 4])
@pytest.mark.parametrize("width", [1, 5, 79, 80, 81, 300])
def test_leave_one_out_is_that_of_the_whole_kernel_for_any_width(
    monkeypatch: pytest.MonkeyPatch, width: int, per_unit: int
) -> None:
    monkeypatch.setattr(ridges, "ROWS_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(width)
    targets = torch.randint(3, 23, (80,), generator=generator)  # of 30 classes some never occur
    features = torch.randn(30, width, generator=generator)[targets] + torch.randn(80, width, generator=generator)
    units = [place // max(per_unit, 1) for place in range(80)]
    if per_unit == 4:
        units = torch.randint(25, (80,), generator=generator).tolist()  # of all sizes
    found = loo_guesses(features, targets, units=units if per_unit else None)
    assert torch.equal(found, kernel_loo(features.double(), targets, units, 30))
    assert 0.05 < float((found == targets).double().mean()) < 1


def test_no_matrix_of_a_probe_is_larger_than_the_smaller_of_images_and_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: seen.append(tuple(matrix.shape)) or eigh(matrix))
    for width in (5, 90, 200):
        loo_guesses(torch.randn(90, width), torch.arange(90) % 3)
    assert seen == [(5, 5), (90, 90), (90, 90)]


def test_of_many_classes_the_strength_is_chosen_on_so_many_as_have_images_in_every_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "MOST_FOR_SEARCH", 100)
    features, targets = clouds(count=600, width=40, num_classes=60, distance=3.0)
    probe = fit_probe(features, targets, num_classes=60)
    assert probe.judged == pytest.approx(20 / 60) and probe.weight.shape == (60, 40)
    drawn = targets[probes._sample(probes._Images(features, targets, 60, torch.ones(600), probes.CLASSES), 0)]
    assert len(drawn) == 100 and int(torch.unique(drawn, return_counts=True)[1].min()) >= 2
    assert probe.top1 > 0.5  # of images whose classes the sample hardly knew, next to none would be named
    assert float((features @ probe.weight.T + probe.bias).argmax(dim=1).eq(targets).float().mean()) > 0.8


def test_of_few_classes_all_are_judged() -> None:
    features, targets = clouds()
    assert fit_probe(features, targets, num_classes=3).judged == 1


def test_where_no_class_has_two_units_the_strength_is_not_the_one_that_guesses_nothing() -> None:
    features, targets = clouds(count=4, num_classes=4)
    views, labels = features.repeat(3, 1), targets.repeat(3)
    probe = fit_probe(views, labels, num_classes=4, units=[0, 1, 2, 3] * 3, is_selective=True)
    assert (probe.strength, probe.judged, probe.share) == (UNJUDGED, 0, 1)


def test_classes_of_one_image_have_no_part_in_the_choice_of_the_strength() -> None:
    features, targets = clouds(distance=4)
    odd = torch.randn(120, 5, generator=torch.Generator().manual_seed(1)) * 40
    all_targets = torch.cat([targets, torch.arange(3, 123)])
    probe = fit_probe(torch.cat([features, odd]), all_targets, num_classes=123)
    assert probe.judged == pytest.approx(3 / 123)
    assert probe.top1 > 0.8
