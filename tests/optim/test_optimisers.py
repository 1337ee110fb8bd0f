"""Optimisers: every trained parameter once, at the learning rate and weight decay of its layer group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from finetune.backbone.groups import layer_groups
from finetune.optim.optimisers import OPTIMISERS, build, parameter_groups, set_momentum
from finetune.settings import OptimSection
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


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_optimiser_keeps_rates_and_decays_of_its_groups(name: str) -> None:
    model, groups = grouped("test_resnet")
    given = parameter_groups(model, top(groups, 2), groups, lr=0.1, weight_decay=0.05)
    wanted = [(group["lr"], group["weight_decay"], len(group["params"])) for group in given]
    optimiser = build(section(name), given)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimiser.param_groups] == wanted


def test_the_head_has_a_rate_of_its_own() -> None:
    model, groups = grouped("test_resnet")
    given = parameter_groups(model, top(groups, 1), groups, lr=0.1, weight_decay=0.05, head_lr=10)
    rates = {id(parameter): group["lr"] for group in given for parameter in group["params"]}
    assert rates[id(model.get_parameter(groups[-1].parameters[0]))] == pytest.approx(1.0)
    assert rates[id(model.get_parameter(groups[-2].parameters[0]))] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "momentum", "expected"),
    [("sgd", "auto", (0.0, False)), ("momentum", "auto", (0.9, False)), ("nesterov", "auto", (0.9, True)),
     ("momentum", 0.5, (0.5, False)), ("nesterov", 0.99, (0.99, True))],
)  # fmt: skip
def test_momentum_is_what_is_asked_for(name: str, momentum: Any, expected: tuple[float, bool]) -> None:
    optimiser = build(section(name, momentum=momentum), one_weight())
    assert {(group["momentum"], group["nesterov"]) for group in optimiser.param_groups} == {expected}
    set_momentum(optimiser, 0.7)
    assert {group["momentum"] for group in optimiser.param_groups} == {0.7}


def test_the_momentum_of_adam_is_its_first_beta() -> None:
    optimiser = build(section("adamw"), one_weight())
    set_momentum(optimiser, 0.8)
    assert optimiser.param_groups[0]["betas"] == (0.8, 0.999)


def section(name: Any, **numbers: Any) -> OptimSection:
    return OptimSection(name=name, **numbers)


def one_weight(value: float = 2.0, *, lr: float = 0.1, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.full((1, 1), value))], "lr": lr, "weight_decay": weight_decay}]


def one_step(name: str, *, weight_decay: float, lr: float = 0.1) -> float:
    groups = one_weight(lr=lr, weight_decay=weight_decay)
    optimiser = build(section(name), groups)
    groups[0]["params"][0].grad = torch.ones(1, 1)
    optimiser.step()
    return float(groups[0]["params"][0].detach())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 2 * (1 - 0.1 * 0.5) - 0.1), ("nadamw", None), ("adam", 2 - 0.1), ("sgd", 2 - 0.1), ("momentum", 1.9),
        ("nesterov", 2 - 0.1 * 1.9), ("adagrad", 2 - 0.1), ("rmsprop", 2 - 0.1 / 0.1**0.5),
        ("adadelta", 2 - 0.1 * (1e-6 / (0.1 + 1e-6)) ** 0.5), ("lion", 2 * (1 - 0.1 * 0.5) - 0.1),
        ("lamb", None), ("muon", None),
    ],
)  # fmt: skip
def test_a_first_step_has_the_known_size(name: str, expected: float | None) -> None:
    weight_decay = 0.5 if name in ("adamw", "lion") else 0.0
    after = one_step(name, weight_decay=weight_decay)
    assert after == pytest.approx(expected, abs=1e-5) if expected is not None else 0 < after < 2


@pytest.mark.parametrize("name", OPTIMISERS)
def test_nothing_moves_at_a_learning_rate_of_zero(name: str) -> None:
    assert one_step(name, weight_decay=0.5, lr=0.0) == 2.0
