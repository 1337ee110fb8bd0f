"""Frozen is frozen: no step, no `train()` and no random layer moves what a plan freezes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from timm.models.levit import Levit
from torch import Tensor, nn

from finetune.backbone.freeze import check_plan, freezing, group_state, modules_by_group, reinitialise
from finetune.backbone.groups import layer_groups
from finetune.errors import RecipeError
from finetune.optim.optimisers import build, parameter_groups
from finetune.settings import OptimSection
from finetune.types import FreezePlan, GroupPlan, LayerGroup
from tests import support

NETWORKS = [
    "test_resnet",  # BatchNorm2d
    "test_vit",  # tokens, LayerNorm
    "test_convnext",  # LayerNorm on channels
    "test_efficientnet",  # BatchNormAct2d
    "levit",  # BatchNorm1d
]
SIZE = 64
LEVIT = {"embed_dim": (16, 24, 32), "num_heads": (2, 3, 4), "depth": (1, 1, 1), "key_dim": 8}


def network(name: str, **arguments: float) -> nn.Module:
    if name == "levit":
        torch.manual_seed(0)
        return Levit(img_size=SIZE, num_classes=4, **LEVIT)
    return support.network(name, **{"img_size": SIZE} if name == "test_vit" else {}, **arguments)


def top(groups: Sequence[LayerGroup], k: int) -> FreezePlan:
    first = len(groups) - 1 - k
    plans = [
        GroupPlan(group.name, "all", norm_statistics="updated") if index >= first else GroupPlan(group.name, "none")
        for index, group in enumerate(groups)
    ]
    return FreezePlan(tuple(plans))


def train(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, steps: int = 2) -> None:
    """Take steps with `train()` called before, between and after every forward pass."""
    with freezing(model, plan, groups):
        optimiser = build(OptimSection(name="adamw"), parameter_groups(model, plan, groups, lr=1e-2, weight_decay=0.1))
        for step in range(steps):
            torch.manual_seed(step)
            model.train()
            logits = model(torch.randn(4, 3, SIZE, SIZE) * 3 + 1)
            model.train()
            logits = torch.stack(logits).mean(dim=0) if isinstance(logits, tuple) else logits
            nn.functional.cross_entropy(logits, torch.arange(4)).backward()
            for module in model.modules():
                module.train()
            optimiser.step()
            optimiser.zero_grad()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_frozen_stays_bit_identical_and_the_rest_moves(name: str, k: int) -> None:
    model = network(name)
    groups, before = layer_groups(model), snapshot(model)
    train(model, top(groups, k), groups)
    moved = changed(model, before)
    for index, group in enumerate(groups):
        is_trained = index >= len(groups) - 1 - k
        assert bool(moved.intersection(group_state(model, groups, [group.name]))) is is_trained, group.name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_the_state_belongs_to_one_group(name: str) -> None:
    model = network(name)
    groups = layer_groups(model)
    keys = [key for group in groups for key in group_state(model, groups, [group.name])]
    assert sorted(keys) == sorted(model.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "levit"])
def test_statistics_of_trained_groups_are_updated(name: str) -> None:
    model = network(name)
    groups, before = layer_groups(model), snapshot(model)
    train(model, top(groups, 1), groups, steps=1)
    moved = {key for key in changed(model, before) if key.endswith("running_mean")}
    assert moved == {key for key in group_state(model, groups, [groups[-2].name, "head"]) if "running_mean" in key}
    assert moved


def test_full_training_moves_every_group() -> None:
    model = network("test_resnet")
    groups, before = layer_groups(model), snapshot(model)
    train(model, top(groups, len(groups) - 1), groups)
    assert all(changed(model, before).intersection(group.parameters) for group in groups)


def test_trained_layers_can_keep_their_statistics_and_normalise_with_them() -> None:
    model = network("test_resnet")
    groups = layer_groups(model)
    plan = FreezePlan(tuple(GroupPlan(group.name, "all", norm_statistics="frozen") for group in groups))
    before, images = snapshot(model), torch.randn(4, 3, SIZE, SIZE) * 5
    with torch.no_grad(), freezing(model, plan, groups):
        trained = model.train()(images)
    assert not changed(model, before)
    assert torch.equal(trained, model.eval()(images))
    train(model, plan, groups, steps=1)
    moved = changed(model, before)
    assert all(moved.intersection(group.parameters) for group in groups)
    assert not [key for key in moved if "running" in key or "num_batches" in key]


RANDOM = {
    "test_resnet": {"drop_path_rate": 0.5, "drop_block_rate": 0.3, "zero_init_last": False},
    "test_convnext": {"drop_path_rate": 0.5},
    "test_vit": {"drop_path_rate": 0.5, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "pos_drop_rate": 0.3},
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_of_frozen_groups_are_off(name: str) -> None:
    model, images = network(name, **RANDOM[name]), torch.randn(8, 3, SIZE, SIZE)
    groups = layer_groups(model)
    with torch.no_grad():
        assert not torch.equal(model.train()(images), model.train()(images))
        plain = model.eval()(images)
        with freezing(model, top(groups, 0), groups):
            assert torch.equal(model.train()(images), plain)


@pytest.mark.parametrize("name", NETWORKS[:4])
def test_dropout_before_the_head_is_on_while_the_backbone_is_frozen(name: str) -> None:
    model, images = network(name, drop_rate=0.5), torch.randn(8, 3, SIZE, SIZE)
    groups = layer_groups(model)
    with torch.no_grad(), freezing(model, top(groups, 0), groups):
        first, second = model.train()(images), model.train()(images)
    assert not torch.equal(first, second)


def test_random_layers_of_a_trained_group_are_on_and_those_before_it_off() -> None:
    model, images = network("test_vit", **RANDOM["test_vit"]), torch.randn(8, 3, SIZE, SIZE)
    groups, seen = layer_groups(model), []
    model.blocks[-2].register_forward_hook(lambda *call: seen.append(call[-1]))
    model.blocks[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model.eval()(images)
        with freezing(model, top(groups, 1), groups):
            model.train()(images)
            model.train()(images)
    inner, last = seen[0::2], seen[1::2]
    assert torch.equal(inner[0], inner[1])
    assert torch.equal(inner[0], inner[2])
    assert not torch.equal(last[1], last[2])


def test_a_part_of_the_model_can_be_held_to_the_plan() -> None:
    model, images = network("test_resnet"), torch.randn(4, 3, SIZE, SIZE)
    groups, before = layer_groups(model), snapshot(model)
    part = nn.Sequential(model.conv1, model.bn1, model.layer1)
    with freezing(model, top(groups, 0), groups) as hold:
        hold(part)
        part.train()(images)
    assert not changed(model, before)
    part.train()(images)
    assert "bn1.running_mean" in changed(model, before)


def test_gradients_are_asked_for_where_the_plan_trains_and_everywhere_afterwards() -> None:
    model = network("test_convnext")
    groups = layer_groups(model)
    with freezing(model, top(groups, 1), groups):
        asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert asked == {*groups[-2].parameters, *groups[-1].parameters}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_model_is_released_after_an_error() -> None:
    model = network("test_resnet")
    groups, before = layer_groups(model), snapshot(model)
    with pytest.raises(ZeroDivisionError), freezing(model, top(groups, 0), groups):
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()(torch.randn(4, 3, SIZE, SIZE))
    assert "bn1.running_mean" in changed(model, before)


def test_a_plan_that_misses_doubles_or_misorders_a_group_is_refused() -> None:
    model = network("test_resnet")
    groups = layer_groups(model)
    good = top(groups, 1).groups
    for plans in (good[1:], good[:-1], (*good, good[-1]), (good[1], good[0], *good[2:])):
        with pytest.raises(RecipeError, match="the network has"), freezing(model, FreezePlan(plans), groups):
            pytest.fail("a plan that does not fit was accepted")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_plan_that_trains_nothing_is_refused() -> None:
    groups = layer_groups(network("test_resnet"))
    with pytest.raises(RecipeError, match="trains nothing"):
        check_plan(FreezePlan(tuple(GroupPlan(group.name, "none") for group in groups)), groups)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("which", [("head",), ("stem", "head"), ("middle",)])
def test_exactly_the_named_groups_are_reinitialised(name: str, which: tuple[str, ...]) -> None:
    model, fresh = network(name), network(name)
    groups = layer_groups(model)
    names = [groups[2].name if name == "middle" else name for name in which]
    for tensor in fresh.state_dict().values():
        tensor.add_(1)
    before, new = snapshot(model), fresh.state_dict()
    reinitialise(model, fresh, groups, names)
    assert changed(model, before) == set(group_state(model, groups, names)) != set()
    assert all(torch.equal(model.state_dict()[key], new[key]) for key in group_state(model, groups, names))


def test_a_reinitialised_parameter_is_the_same_object_as_before() -> None:
    model, fresh = network("test_resnet"), network("test_resnet", global_pool="max")
    weight = model.fc.weight
    reinitialise(model, fresh, layer_groups(model), ["head"])
    assert model.fc.weight is weight


class Bare(nn.Module):
    """A network whose norm has no parameters, with dropout between its layers and before its head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.body = nn.ModuleDict({"drop": nn.Dropout(), "conv": nn.Conv2d(4, 4, 3), "act": nn.ReLU()})
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 2)
        self.last = nn.Softmax(dim=1)


def test_modules_without_parameters_stand_with_what_comes_next_else_before() -> None:
    groups = (
        LayerGroup("stem", ("first.weight", "first.bias"), 112),
        LayerGroup("body", ("body.conv.weight", "body.conv.bias"), 148),
        LayerGroup("head", ("head.weight", "head.bias"), 10, is_head=True),
    )
    places = modules_by_group(Bare(), groups)
    assert places.pop("") is None
    assert places.pop("norm") == "body"
    assert {places.pop(name) for name in ("drop", "head", "last")} == {"head"}
    assert places.pop("first") == "stem"
    assert set(places.values()) == {"body"}
    assert group_state(Bare(), groups, ["body"])[-1] == "norm.num_batches_tracked"
