"""Multiply-adds are counted as one counts them by hand."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from finetune.backbone.cost import multiplications


def test_convolutions_and_matrices_are_counted_once_for_one_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 6 * 5, 7))
    assert multiplications(model.train(), image_size=(6, 5)) == 3 * 8 * 9 * 30 + 8 * 30 * 7
    assert model.training
    assert not model[1].num_batches_tracked.any()


@pytest.mark.parametrize(("name", "gmacs"), [("resnet18", 1.82), ("deit_tiny_patch16_224", 1.26)])
def test_known_networks_have_their_published_cost(name: str, gmacs: float) -> None:
    assert multiplications(timm.create_model(name), image_size=(224, 224)) / 1e9 == pytest.approx(gmacs, abs=0.02)
