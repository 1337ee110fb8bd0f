"""Trunk and tail: cut at any layer group, the parts give bit for bit what the whole gives."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from torch import nn

import finetune.backbone.classics  # noqa: F401  (registers them)
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.features.divide import agrees, divide
from finetune.features.graphs import IndivisibleError
from finetune.randomness import forked
from finetune.strategy.strategies import Choice, phases
from finetune.types import FreezePlan
from tests.support import CLASSICS, Branching

QUICK = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
FAMILIES = [
    "resnet18",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "vgg11_bn",
    "inception_v3",
    "inception_v4",
    "efficientnet_b0",
    "densenet121",
    "mobilevit_xxs",
    "regnetx_002",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "maxvit_nano_rw_256",
    "coatnet_nano_rw_224",
    "fastvit_t8",
    "xcit_nano_12_p16_224",
    "poolformerv2_s12",
    "levit_128s",
    "efficientformerv2_s0",
]


def top(model: nn.Module, k: int) -> FreezePlan:
    return phases(Choice("top-k", epochs=1, lr=1e-3, layer_decay=1.0, top_k=k), layer_groups(model))[0].plan


def cut_agrees(model: nn.Module, k: int, size: tuple[int, int]) -> bool:
    groups = layer_groups(model)
    plan = top(model, k)
    with freezing(model, plan, groups) as hold:
        divided = divide(model, plan, groups, image_size=size)
        hold(divided.tail)
        return agrees(model, divided, torch.randn(5, 3, *size), fork=partial(forked, 3))


def build(name: str, **more: float) -> tuple[nn.Module, tuple[int, int]]:
    fixed = {"img_size": 112} if "dinov2" in name or "eva02" in name else {}
    try:
        model = timm.create_model(name, num_classes=7, **fixed, **more).eval()
    except TypeError:
        model = timm.create_model(name, num_classes=7, **fixed).eval()
    return model, (112, 112) if fixed else tuple(model.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize("name", QUICK)
def test_the_parts_give_the_whole_at_every_cut(name: str) -> None:
    model, size = build(name, drop_rate=0.2, drop_path_rate=0.3)
    num_backbone = len(layer_groups(model)) - 1
    assert all(cut_agrees(model, k, size) for k in range(num_backbone))


@pytest.mark.parametrize(("name", "side"), CLASSICS.items())
def test_the_parts_give_the_whole_for_the_networks_of_the_notes(name: str, side: int) -> None:
    fixed = {"img_size": side} if name == "zfnet" else {}
    model = timm.create_model(name, num_classes=7, drop_rate=0.2, **fixed).eval()
    num_backbone = len(layer_groups(model)) - 1
    is_large = name in ("alexnet", "zfnet", "inception_v2")
    cuts = {0, 1, num_backbone // 2, num_backbone - 1} if is_large else range(num_backbone)
    assert all(cut_agrees(model, k, (side, side)) for k in sorted(cuts))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "zfnet", "inception_v2"])
def test_the_parts_give_the_whole_at_every_cut_of_the_large_networks_of_the_notes(name: str) -> None:
    model, size = build(name, drop_rate=0.2)
    assert all(cut_agrees(model, k, size) for k in range(len(layer_groups(model)) - 1))


def test_a_cut_below_auxiliary_classifiers_keeps_their_logits() -> None:
    model = timm.create_model("googlenet", num_classes=7).eval()
    groups = layer_groups(model)
    images = torch.randn(2, 3, 32, 32)
    for k, num_outputs in ((3, 1), (4, 2), (7, 3)):
        plan = top(model, k)
        with freezing(model, plan, groups) as hold:
            divided = divide(model, plan, groups, image_size=(32, 32))
            hold(divided.tail)
            output = divided.tail.train()(divided.trunk(images))
            assert (len(output) if isinstance(output, tuple) else 1) == num_outputs
            assert isinstance(divided.tail.eval()(divided.trunk(images)), torch.Tensor)


def test_an_auxiliary_output_that_differs_is_seen() -> None:
    model = timm.create_model("googlenet", num_classes=7).eval()
    groups, plan = layer_groups(model), top(model, 7)
    with freezing(model, plan, groups) as hold:
        divided = divide(model, plan, groups, image_size=(32, 32))
        hold(divided.tail)
        in_training = divided.tail.in_training
        divided.tail.in_training = Doubled(in_training)
        assert agrees(model, divided, torch.randn(2, 3, 32, 32), fork=partial(forked, 3)) is False
        divided.tail.in_training = in_training
        assert agrees(model, divided, torch.randn(2, 3, 32, 32), fork=partial(forked, 3)) is True


class Doubled(nn.Module):
    """Doubles what a part puts out last: a wrong auxiliary output."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *boundary: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *outputs, last = self.part(*boundary)
        return (*outputs, 2 * last)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_give_the_whole_for_every_family(name: str) -> None:
    model, size = build(name, drop_rate=0.2, drop_path_rate=0.3)
    num_backbone = len(layer_groups(model)) - 1
    assert all(cut_agrees(model, k, size) for k in sorted({0, 1, num_backbone // 2, num_backbone - 1}))


def test_the_boundary_of_head_only_is_what_reaches_the_head() -> None:
    model, size = build("test_resnet", drop_rate=0.5)
    divided = divide(model, top(model, 0), layer_groups(model), image_size=size)
    assert divided.shapes == ((96,),)


def test_a_pooled_copy_beside_the_tensor_itself_does_not_cross() -> None:
    model, size = build("test_resnet")
    divided = divide(model, top(model, 1), layer_groups(model), image_size=size)
    assert divided.shapes == ((192, 10, 10),)


def test_dropout_before_the_head_stays_random_in_training_and_off_in_eval() -> None:
    model, size = build("test_resnet", drop_rate=0.5)
    divided = divide(model, top(model, 0), layer_groups(model), image_size=size)
    boundary = divided.trunk(torch.randn(2, 3, *size))
    divided.tail.train()
    assert not torch.equal(divided.tail(boundary), divided.tail(boundary))
    divided.tail.eval()
    assert torch.equal(divided.tail(boundary), divided.tail(boundary))


def test_the_tail_trains_the_parameters_of_the_model() -> None:
    model, size = build("test_vit")
    groups = layer_groups(model)
    plan = top(model, 2)
    with freezing(model, plan, groups):
        tail = divide(model, plan, groups, image_size=size).tail
        assert {id(p) for p in tail.parameters() if p.requires_grad} == {
            id(p) for p in model.parameters() if p.requires_grad
        }


def test_full_has_no_trunk() -> None:
    model, size = build("test_resnet")
    with pytest.raises(IndivisibleError, match="nothing is frozen"):
        divide(model, top(model, 5), layer_groups(model), image_size=size)


def test_a_cut_that_is_wrong_is_seen() -> None:
    model, size = build("test_resnet")
    groups, plan = layer_groups(model), top(model, 0)
    divided = divide(model, plan, groups, image_size=size)
    fork = partial(forked, 3)
    images = torch.randn(4, 3, *size)
    assert agrees(model, divided, images, fork=fork) is False  # not held to its plan: batch norm moves
    with freezing(model, plan, groups) as hold:
        hold(divided.tail)
        assert agrees(model, divided, images, fork=fork) is True


def test_dividing_leaves_the_model_as_it_was() -> None:
    model, size = build("test_vit")
    names, state = set(vars(model)), {k: v.clone() for k, v in model.state_dict().items()}
    divide(model, top(model, 2), layer_groups(model), image_size=size)
    assert set(vars(model)) == names
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model.training


def test_a_network_that_cannot_be_followed_says_so() -> None:
    model = Branching()
    with pytest.raises(IndivisibleError, match=r"torch\.fx cannot follow"):
        divide(model, top(model, 0), layer_groups(model), image_size=(8, 8))
