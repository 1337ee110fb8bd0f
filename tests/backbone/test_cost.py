"""Multiply-adds are counted as one counts them by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune.backbone.cost import multiplications


def test_convolutions_and_matrices_are_counted_once_for_one_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 6 * 5, 7))
    assert multiplications(model.train(), image_size=(6, 5)) == 3 * 8 * 9 * 30 + 8 * 30 * 7
    assert model.training
    assert not model[1].num_batches_tracked.any()


# timm's published table, in G multiply-adds at 224 pixels: plain attention, in shifted windows, and none.
PUBLISHED = {"deit_tiny_patch16_224": 1.26, "swin_tiny_patch4_window7_224": 4.51, "resnet18": 1.82}


@pytest.mark.parametrize(("name", "gmacs"), PUBLISHED.items())
def test_known_networks_have_their_published_cost(name: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert multiplications(model, image_size=(224, 224)) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("kernel", SDPBackend.__members__.values(), ids=str)
def test_attention_counts_the_same_whichever_kernel_is_asked_for(kernel: SDPBackend) -> None:
    model = timm.create_model("test_vit")
    plain = multiplications(model, image_size=(160, 160))
    with sdpa_kernel(kernel):
        assert multiplications(model, image_size=(160, 160)) == plain
