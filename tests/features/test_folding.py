"""Still batch norms in the convolutions before them: the same training in fewer layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import StdConv2dSame
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.features.divide import Tail, divide
from finetune.features.folding import FoldedConvolution, folded_run, num_folded, trains_alike
from finetune.randomness import forked
from finetune.strategy.strategies import Choice, phases
from finetune.types import FreezePlan

FORK = partial(forked, 3)
# Of ResNets, of norms that hold their activation, of padding as TensorFlow has it: every norm is behind a convolution.
ALL = ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"]
NONE = ["test_nfnet", "test_vit"]


def build(name: str, size: int = 64) -> tuple[nn.Module, Tensor]:
    """Return a network of float64 with statistics that a norm would not skip, and a batch of images."""
    torch.manual_seed(0)
    fixed = {"img_size": size} if "vit" in name else {}
    model = timm.create_model(name, num_classes=5, drop_rate=0.2, **fixed).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval(), torch.randn(4, 3, size, size, dtype=torch.float64)


def planned(model: nn.Module, strategy: str = "full", **more: Any) -> FreezePlan:
    choice = Choice(strategy, epochs=1, lr=1e-3, layer_decay=1.0, **more)  # type: ignore[arg-type]
    return phases(choice, layer_groups(model))[-1].plan


def slopes(model: nn.Module, run: nn.Module, inputs: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    run.train()
    with FORK():
        torch.autograd.backward(cross_entropy(run(inputs), torch.tensor([0, 1, 2, 4])))
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def check_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() and one
    for name, slope in one.items():
        torch.testing.assert_close(other[name], slope, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", [*ALL, "densenet121"])
def test_full_training_gets_the_same_gradients(name: str) -> None:
    model, images = build(name)
    groups, plan = layer_groups(model), planned(model)
    with freezing(model, plan, groups) as hold:
        folded = folded_run(model, plan, groups)
        assert folded is not None
        count = num_folded(folded)
        assert count == norms_of(model) if name in ALL else 0 < count < norms_of(model)
        hold(folded)
        assert trains_alike(model, folded, images, fork=FORK)
        check_alike(slopes(model, model, images), slopes(model, folded, images))
        assert torch.equal(folded.eval()(images), model.eval()(images))  # val is measured on the network as it is


@pytest.mark.parametrize("name", NONE)
def test_a_network_without_batch_norms_runs_as_it_is(name: str) -> None:
    model, _ = build(name)
    assert folded_run(model, planned(model), layer_groups(model)) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_tail_gets_the_same_gradients(name: str) -> None:
    model, images = build(name)
    groups, plan = layer_groups(model), planned(model, "top-k", top_k=2)
    with freezing(model, plan, groups) as hold:
        divided = divide(model.float(), plan, groups, image_size=(64, 64))
        model.double()
        found = folded_run(divided.tail, plan, groups)
        assert found is not None
        hold(divided.tail)
        hold(found)
        boundary = divided.trunk(images)
        check_alike(slopes(model, divided.tail, boundary), slopes(model, found, boundary))


def test_a_step_leaves_no_other_weights_and_no_other_names() -> None:
    model, images = build("test_efficientnet")
    groups, plan, before = layer_groups(model), planned(model), list(model.state_dict())
    found = folded_run(model, plan, groups)
    assert found is not None
    assert {id(weight) for weight in found.parameters()} == {id(weight) for weight in model.parameters()}
    slopes(model, found, images)
    assert list(model.state_dict()) == before
    assert not any(isinstance(module, FoldedConvolution) for module in model.modules())


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("full", {"updates_norms": True}), ("bias-only", {}), ("norm-only", {}), ("lora", {"lora_rank": 2})],
)
def test_norms_that_move_or_would_need_more_gradients_stay(strategy: str, more: dict[str, Any]) -> None:
    model, _ = build("test_resnet")
    assert folded_run(model, planned(model, strategy, **more), layer_groups(model)) is None


def test_what_lies_frozen_behind_trained_layers_is_folded() -> None:
    model, images = build("test_resnet")
    groups = layer_groups(model)
    plan = FreezePlan(
        tuple(replace(item, trains="none" if "2" in item.group else "all") for item in planned(model).groups)
    )
    assert plan.frozen and plan.trained
    with freezing(model, plan, groups) as hold:
        found = folded_run(model, plan, groups)
        assert found is not None and num_folded(found) == norms_of(model)
        hold(found)
        check_alike(slopes(model, model, images), slopes(model, found, images))


class Plain(nn.Module):
    """A network of one convolution, a batch norm and a head."""

    def __init__(self, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        self.stem, self.norm, self.head = convolution(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.num_classes = 5

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.stem(images)).mean((2, 3)))
        return logits


def test_a_convolution_of_another_kind_is_left_alone() -> None:
    assert _folded(Plain(nn.Conv2d)) is not None
    assert _folded(Plain(StdConv2dSame)) is None


def test_what_does_not_train_alike_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FoldedConvolution.forward
    monkeypatch.setattr(FoldedConvolution, "forward", lambda self, images: forward(self, images) * 1.001)
    model, images = Plain(nn.Conv2d), torch.randn(4, 3, 8, 8)
    folded = _folded(model)
    assert folded is not None
    assert trains_alike(model, folded, images, fork=FORK) is False


def _folded(model: nn.Module) -> Tail | None:
    return folded_run(model, planned(model), layer_groups(model))
