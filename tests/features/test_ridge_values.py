"""Ridge regression by leave-one-out against fits without each image; solved heads of sets and numbers."""

from __future__ import annotations

import pytest
import torch

from finetune.features.families import FAMILIES
from finetune.features.probe import fit_probe
from finetune.features.ridge_values import ValueRidge, best_left_out
from finetune.features.scaling import blocks, rescaled


def drawn(count: int, width: int, columns: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.double)
    weight = torch.randn(width, columns, generator=generator, dtype=torch.double)
    return features, features @ weight + torch.randn(count, columns, generator=generator, dtype=torch.double)


def without(scaled: torch.Tensor, targets: torch.Tensor, held: list[int], strength: float) -> torch.Tensor:
    """Return what a ridge regression with an intercept, fitted to the others, says of images left out."""
    kept = [place for place in range(len(scaled)) if place not in held]
    x, y = scaled[kept], targets[kept]
    centre, middle = x.mean(dim=0), y.mean(dim=0)
    kernel = (x - centre).T @ (x - centre) / scaled.shape[1]
    weight = torch.linalg.solve(
        kernel + strength * torch.eye(x.shape[1], dtype=x.dtype), (x - centre).T @ (y - middle) / scaled.shape[1]
    )
    return (scaled[held] - centre) @ weight + middle


@pytest.mark.parametrize(("count", "width"), [(12, 5), (9, 20)], ids=["more images", "more features"])
def test_what_is_said_of_an_image_is_what_a_fit_without_its_unit_says(count: int, width: int) -> None:
    features, targets = drawn(count, width)
    units = [0, 0, 0, *range(1, count - 2)]
    found = ValueRidge.of(features, targets).left_out(3.0, blocks(units))
    scaled, _, _ = rescaled(features)
    for unit in set(units):
        held = [place for place, own in enumerate(units) if own == unit]
        assert torch.allclose(found[held], without(scaled, targets, held, 3.0), atol=1e-8)


def test_an_image_alone_is_given_the_mean() -> None:
    features, targets = drawn(6, 3)
    found, _ = best_left_out(ValueRidge.of(features, targets), blocks([0] * 6))
    assert torch.allclose(found, targets.mean(dim=0).expand(6, 2))


def test_noise_is_not_explained_and_a_line_is() -> None:
    features, targets = drawn(80, 4)
    left_out, _ = best_left_out(ValueRidge.of(features, targets), [])
    assert (left_out - targets).square().mean() < 2
    noise = torch.randn(80, 2, generator=torch.Generator().manual_seed(9), dtype=torch.double)
    of_noise, strength = best_left_out(ValueRidge.of(features, noise), [])
    assert (of_noise - noise).square().mean() < 1.1 * noise.var(dim=0).mean() and strength > 1


def test_a_solved_head_of_numbers_is_the_ridge_regression() -> None:
    features, targets = (tensor.float() for tensor in drawn(60, 4, columns=1))
    probe = fit_probe(features, targets, num_classes=1, family=FAMILIES["regress"])
    scaled, mean, std = rescaled(features.double())
    y = targets.double()
    kernel = scaled.T @ scaled / 60 + probe.strength / (2 * 4) * torch.eye(4, dtype=torch.double)
    weight = torch.linalg.solve(kernel, scaled.T @ (y - y.mean()) / 60)[:, 0] / std
    assert torch.allclose(probe.weight[0].double(), weight, atol=2e-3)
    assert float(probe.bias) == pytest.approx(float(y.mean() - weight @ mean), abs=5e-3)


def test_a_solved_head_of_sets_is_a_classifier_for_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(120, 6, generator=generator)
    targets = (features[:, :3] + 0.5 * torch.randn(120, 3, generator=generator) > 0.3).float()
    family = FAMILIES["multilabel"]
    whole = fit_probe(features, targets, num_classes=3, family=family)
    logits = features @ whole.weight.T + whole.bias
    assert float(((logits > 0).float() == targets).double().mean()) > 0.85
    twice = fit_probe(features, torch.cat([targets, targets], dim=1), num_classes=6, family=family)
    assert torch.allclose(twice.weight[:3], whole.weight, atol=2e-2)  # a class is fitted by itself
    assert 0 < whole.loss < 3 * 0.693


def test_a_selective_head_of_sets_keeps_what_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(150, 40, generator=generator)
    targets = (features[:, :2] > 0).float()
    probe = fit_probe(features, targets, num_classes=2, is_selective=True, family=FAMILIES["multilabel"])
    assert probe.share < 1
    assert (probe.weight[:, :2].abs().amax(dim=1) > 0).all()
