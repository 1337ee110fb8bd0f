"""The shift of batch norm is told in the deviations that it has stored, by layer group."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from finetune.backbone.groups import layer_groups
from finetune.features.shift import norm_shift
from tests.support import random_images


def settled(model: nn.Module) -> nn.Module:
    """Let the statistics be those of the images themselves, layer by layer."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for _ in norms:  # each layer's input is settled once those before it are
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            model(random_images(4, 32, seed=0))
        model.eval()
    return model


def test_images_like_the_stored_statistics_have_no_shift_and_others_have_theirs() -> None:
    model = settled(timm.create_model("test_resnet", pretrained=False).eval())
    groups = layer_groups(model)
    at_home = norm_shift(model, groups, random_images(4, 32, seed=0)).groups
    assert list(at_home) == [group.name for group in groups if not group.is_head]
    assert max(at_home.values()) < 0.1  # rounding grows with depth
    first = model.bn1
    first.running_mean += 2 * torch.sqrt(first.running_var + first.eps)
    moved = norm_shift(model, groups, random_images(4, 32, seed=0)).groups
    assert moved["stem"] > at_home["stem"] + 0.3
    assert moved["layer4"] > at_home["layer4"]


def test_nothing_of_the_model_changes() -> None:
    model = timm.create_model("test_resnet", pretrained=False).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    norm_shift(model, layer_groups(model), random_images(4, 32, seed=0))
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_network_without_batch_norm_has_no_shift() -> None:
    model = timm.create_model("test_vit", pretrained=False).eval()
    assert norm_shift(model, layer_groups(model), torch.randn(1, 3, 160, 160)) is None


def test_the_mean_is_over_the_groups_and_its_interval_narrows_with_more_images() -> None:
    model = timm.create_model("test_resnet", pretrained=False).eval()
    groups = layer_groups(model)
    few, many = (norm_shift(model, groups, random_images(count, 32, seed=0)) for count in (6, 48))
    for found in (few, many):
        assert found.mean.value == pytest.approx(sum(found.groups.values()) / len(found.groups))
        assert found.mean.low <= found.mean.value <= found.mean.high
    assert many.mean.high - many.mean.low < few.mean.high - few.mean.low
    assert norm_shift(model, groups, random_images(6, 32, seed=0)) == few


def test_four_images_are_as_far_off_as_the_many_that_they_are_drawn_from() -> None:
    model = timm.create_model("test_resnet", pretrained=False).eval()
    groups = layer_groups(model)
    drawn = torch.Generator().manual_seed(1)
    many = 0.3 * torch.randn(128, 3, 32, 32, generator=drawn) + torch.randn(128, 3, 1, 1, generator=drawn)
    whole = norm_shift(model, groups, many).mean
    fours = [norm_shift(model, groups, four).mean for four in many.split(4)]
    assert sum(four.value for four in fours) / len(fours) == pytest.approx(whole.value, rel=0.25)
    assert sum(four.low <= whole.value <= four.high for four in fours) >= 0.8 * len(fours)


def test_altered_copies_leave_shift_and_interval_as_they_are_without_them() -> None:
    model = timm.create_model("test_resnet", pretrained=False).eval()
    groups = layer_groups(model)
    photos = random_images(12, 32, seed=0)
    one = norm_shift(model, groups, photos)
    units = [place // 4 for place in range(48)]
    four = norm_shift(model, groups, photos.repeat_interleave(4, dim=0), units)
    taken_for_48 = norm_shift(model, groups, photos.repeat_interleave(4, dim=0))
    assert four.mean.value == pytest.approx(one.mean.value, rel=1e-4)
    assert (four.mean.low, four.mean.high) == pytest.approx((one.mean.low, one.mean.high), rel=1e-4)
    assert taken_for_48.mean.high - taken_for_48.mean.low < 0.8 * (four.mean.high - four.mean.low)
    assert four.mean.value < taken_for_48.mean.value  # chance of 12 images is more than chance of 48
