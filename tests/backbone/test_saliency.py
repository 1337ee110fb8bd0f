"""Grad-CAM: what it is by its definition, on networks of every shape of feature map, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.backbone import load as backbones
from finetune.backbone.saliency import Saliency
from finetune.errors import BackboneError
from finetune.types import LayerGroup

SIZE = (32, 32)


class Pooled(nn.Module):
    """A convolution, an average over places, a linear head: Grad-CAM is then the class's weights times the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Module:
        return self.head


GROUPS = (
    LayerGroup("conv", ("conv.weight", "conv.bias"), 196),
    LayerGroup("head", ("head.weight", "head.bias"), 15, is_head=True),
)


def test_of_a_network_that_averages_it_is_the_weighted_sum_of_the_feature_maps() -> None:
    torch.manual_seed(0)
    model, image = Pooled(), torch.randn(3, *SIZE)
    said = Saliency(model, GROUPS, image_size=SIZE)(image, 1)
    maps = model.conv(image[None])
    speaks = (model.head.weight[1].view(1, 4, 1, 1) * maps).sum(1, keepdim=True).clamp(min=0)
    expected = interpolate(speaks / speaks.max(), SIZE, mode="bilinear", align_corners=False)[0, 0]
    assert said is not None and torch.allclose(said, expected, atol=1e-5)


def test_a_place_that_nothing_hangs_on_is_dark_and_the_network_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model, image = Pooled().train(), torch.zeros(3, *SIZE)
    nn.init.zeros_(model.conv.bias)
    image[:, :16, :16] = torch.rand(3, 16, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shown = [Saliency(model, GROUPS, image_size=SIZE)(image, label) for label in range(3)]
    assert any(one is not None for one in shown)
    assert all(one is None or (one.max() > 0.5 and one[24:, 24:].max() == 0) for one in shown)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_mambaout", "lenet5", "test_nfnet"])
def test_every_family_shows_a_map_of_its_input(name: str) -> None:
    backbone = backbones.load(backbones.architecture(name, pretrained=False), num_classes=4)
    size = backbone.preprocessing.image_size
    torch.manual_seed(0)
    eyes = Saliency(backbone.model, backbone.groups, image_size=size)
    shown = [eyes(torch.randn(3, *size), label) for label in range(4)]
    found = [one for one in shown if one is not None]
    assert found and all(one.shape == size and one.min() >= 0 and one.max() <= 1 and one.std() > 0 for one in found)


def test_a_network_without_places_is_refused() -> None:
    class Flat(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images.mean((2, 3)) @ self.conv.weight[:3, :, 0, 0] @ torch.ones(3, 4))
            return logits

    with pytest.raises(BackboneError, match="no feature map"):
        Saliency(Flat(), GROUPS, image_size=SIZE)
