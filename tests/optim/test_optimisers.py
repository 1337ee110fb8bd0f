"""Optimisers: every trained parameter once, at the learning rate and weight decay of its layer group."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from finetune.backbone.groups import layer_groups
from finetune.optim.optimisers import build, parameter_groups
from finetune.types import FreezePlan, GroupPlan, LayerGroup
from tests.support import LAYOUTS, network


def grouped(name: str) -> tuple[nn.Module, tuple[LayerGroup, ...]]:
    model = network(name)
    return model, layer_groups(model)


def top(groups: Sequence[LayerGroup], k: int, *, decay: float = 0.5) -> FreezePlan:
    distances = range(len(groups) - 1, -1, -1)
    return FreezePlan(
        tuple(
            GroupPlan(group.name, "all", lr_scale=decay**distance)
            if distance <= k
            else GroupPlan(group.name, "none", lr_scale=0.0)
            for group, distance in zip(groups, distances, strict=True)
        )
    )


@pytest.mark.parametrize("k", [0, 2, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(name: str, k: int) -> None:
    model, groups = grouped(name)
    found = parameter_groups(model, top(groups, k), groups, lr=0.1, weight_decay=0.05)
    inside = [id(parameter) for group in found for parameter in group["params"]]
    wanted = [id(model.get_parameter(key)) for group in groups[-1 - k :] for key in group.parameters]
    assert sorted(inside) == sorted(wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_learning_rate_shrinks_by_layer_group_towards_the_input(name: str) -> None:
    model, groups = grouped(name)
    found = parameter_groups(model, top(groups, 3), groups, lr=0.1, weight_decay=0.05)
    rates = {id(parameter): group["lr"] for group in found for parameter in group["params"]}
    for distance, group in enumerate(reversed(groups[-4:])):
        own = [rates[id(model.get_parameter(key))] for key in group.parameters]
        assert own == [pytest.approx(0.1 * 0.5**distance)] * len(own)
    assert all(group["peak_lr"] == group["lr"] for group in found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_biases_and_what_the_network_spares_are_not_decayed(name: str) -> None:
    model, groups = grouped(name)
    found = parameter_groups(model, top(groups, len(groups) - 1), groups, lr=0.1, weight_decay=0.05)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in found if group["weight_decay"] for p in group["params"]}
    assert {group["weight_decay"] for group in found} == {0.0, 0.05}
    assert all(model.get_parameter(key).ndim > 1 for key in decayed)
    spared = {key for key in set(names.values()) - decayed if model.get_parameter(key).ndim > 1}
    assert spared == ({"pos_embed", "cls_token"} & set(names.values()))


def test_the_tokens_and_positions_of_a_vit_are_spared() -> None:
    model, groups = grouped("test_vit")
    found = parameter_groups(model, top(groups, len(groups) - 1), groups, lr=0.1, weight_decay=0.05)
    decayed = {id(p) for group in found if group["weight_decay"] for p in group["params"]}
    assert id(model.pos_embed) not in decayed
    assert id(model.patch_embed.proj.weight) in decayed


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_optimiser_keeps_rates_and_decays_of_its_groups(name: str) -> None:
    model, groups = grouped("test_resnet")
    given = parameter_groups(model, top(groups, 2), groups, lr=0.1, weight_decay=0.05)
    wanted = [(group["lr"], group["weight_decay"], len(group["params"])) for group in given]
    optimiser = build(name, given)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimiser.param_groups] == wanted
    assert type(optimiser).__name__.lower() == name


def test_sgd_is_nesterov_with_momentum() -> None:
    model, groups = grouped("test_resnet")
    optimiser = build("sgd", parameter_groups(model, top(groups, 0), groups, lr=0.1, weight_decay=0.0))
    assert {(group["momentum"], group["nesterov"]) for group in optimiser.param_groups} == {(0.9, True)}


def one_step(name: str, *, weight: float, gradient: float, weight_decay: float, lr: float = 0.1) -> float:
    parameter = nn.Parameter(torch.full((1, 1), weight))
    optimiser = build(name, [{"params": [parameter], "lr": lr, "weight_decay": weight_decay}])
    parameter.grad = torch.full((1, 1), gradient)
    optimiser.step()
    return float(parameter.detach())


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", 2 * (1 - 0.1 * 0.5) - 0.1), ("adam", 2 - 0.1), ("sgd", 2 - 0.1 * 1.9)]
)
def test_a_first_step_has_the_known_size(name: str, expected: float) -> None:
    weight_decay = 0.5 if name == "adamw" else 0.0
    assert one_step(name, weight=2.0, gradient=1.0, weight_decay=weight_decay) == pytest.approx(expected, abs=1e-5)


def test_nothing_moves_at_a_learning_rate_of_zero() -> None:
    for name in ("adamw", "adam", "sgd"):
        assert one_step(name, weight=2.0, gradient=1.0, weight_decay=0.5, lr=0.0) == 2.0
