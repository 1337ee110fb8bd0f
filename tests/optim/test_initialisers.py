"""Initialisers by the property that defines each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from finetune.backbone.groups import layer_groups
from finetune.errors import RecipeError
from finetune.optim.initialisers import INITIALISERS, initialise, layers_of, scale_to_unit_variance
from finetune.prepare.asked import recipe_of
from finetune.randomness import forked
from tests.support import LAYOUTS, network


def drawn(name: str, shape: tuple[int, ...] = (256, 64, 3, 3)) -> Tensor:
    weight = torch.ones(shape)
    with forked(0):
        INITIALISERS[name](weight)
    return weight


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("gaussian", 0.01),
        ("xavier", math.sqrt(2 / (64 * 9 + 256 * 9))),
        ("kaiming", math.sqrt(2 / (64 * 9))),
        ("random-walk", math.sqrt(2) * math.exp(1.2 / (64 * 9 - 2.4)) / 24),
    ],
)
def test_weights_have_the_deviation_of_the_formula(name: str, deviation: float) -> None:
    weight = drawn(name)
    assert float(weight.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * deviation


@pytest.mark.parametrize("name", ["orthogonal", "lsuv"])
def test_orthogonal_rows_have_no_part_in_each_other(name: str) -> None:
    weight = drawn(name, (20, 50))
    assert torch.allclose(weight @ weight.T, torch.eye(20), atol=1e-5)


def test_a_random_walk_of_gradients_has_no_drift() -> None:
    """Through a hundred narrow ReLU layers the norm neither vanishes nor explodes; by kaiming it shrinks."""

    def log_norm(name: str) -> float:
        total = 0.0
        for seed in range(20):
            with forked(seed):
                vector = torch.randn(30)
                for _ in range(100):
                    weight = torch.empty(30, 30)
                    INITIALISERS[name](weight)
                    vector = (weight @ vector).relu()
            total += float(vector.norm().log())
        return total / 20

    assert abs(log_norm("random-walk")) < 4 < -log_norm("kaiming") + 4
    assert log_norm("kaiming") < log_norm("random-walk")


@pytest.mark.parametrize("name", sorted({*INITIALISERS} - {"zero"}))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_two_units_are_equal_and_biases_are_zero(name: str, layout: str) -> None:
    model = network(layout)
    names = [parameter for group in layer_groups(model) for parameter in group.parameters]
    with forked(0):
        initialise(model, names, name)
    layers = layers_of(model, names)
    assert layers
    for layer in layers:
        rows = layer.weight.flatten(1)
        assert rows.shape[1] == 1 or len(rows.unique(dim=0)) == len(rows)
        assert layer.bias is None or not layer.bias.any()


def test_auto_and_other_layers_are_left_alone() -> None:
    model, same = network("test_vit"), network("test_vit").state_dict()
    head = next(group for group in layer_groups(model) if group.is_head)
    initialise(model, head.parameters, "auto")
    assert all(torch.equal(tensor, same[key]) for key, tensor in model.state_dict().items())
    initialise(model, head.parameters, "zero")
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, same[key])}
    assert changed and changed <= set(head.parameters) and not model.get_parameter("head.weight").any()


def test_every_layer_has_an_output_of_variance_one_after_lsuv() -> None:
    with forked(0):
        model = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(40, 40), nn.ReLU())], nn.Linear(40, 7))
        images = torch.randn(64, 40)
        initialise(model, [name for name, _ in model.named_parameters()], "lsuv")
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert scale_to_unit_variance(layers, lambda: model(images)) == []
    values = images
    for layer in model:
        values = layer(values)
        if isinstance(layer, nn.Linear):
            assert float(values.detach().var()) == pytest.approx(1, abs=0.02)


def test_a_layer_that_nothing_passes_is_told_of() -> None:
    used, unused = nn.Linear(3, 3), nn.Linear(3, 3)
    assert scale_to_unit_variance([used, unused], lambda: used(torch.randn(8, 3))) == [unused]


def test_zero_is_for_the_head_alone() -> None:
    for overrides in ({"strategy.name": "scratch"}, {"strategy.reinit": True}):
        with pytest.raises(RecipeError, match="only for the head"):
            recipe_of(overrides={"strategy.initialiser": "zero", **overrides})
    assert recipe_of(overrides={"strategy.initialiser": "zero"}).strategy.initialiser == "zero"
