"""A range test leaves everything as it was, and takes the steps that the run would take."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from finetune.backbone.groups import layer_groups
from finetune.errors import RecipeError, ResourceError
from finetune.strategy.strategies import Choice, phases
from finetune.train import range_test as tested
from finetune.train.phases import fit_phases
from finetune.train.range_test import range_test
from finetune.types import Event
from tests.support import mostly_slow, random_states
from tests.train.fitting import fit_of, network

NETWORKS = ["test_resnet", "test_vit", "test_convnext"]


def planned(model: torch.nn.Module, strategy: str, *, lr: float = 1e-2, epochs: int = 2, **more: Any) -> Any:
    return phases(Choice(strategy, epochs=epochs, lr=lr, layer_decay=0.7, **more), layer_groups(model))


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "needs": [(weight.requires_grad, weight.grad is None) for weight in model.parameters()],
        "random": random_states(),
    }


PAIRS = list(product(NETWORKS, ["head-only", "full", "lp-ft", "gradual", "lora", "bias-only", "scratch"]))
QUICK = [("test_resnet", "full"), ("test_vit", "lora"), ("test_convnext", "gradual"), ("test_resnet", "lp-ft")]


@pytest.mark.parametrize(("name", "strategy"), mostly_slow(PAIRS, *QUICK))
def test_everything_is_as_it_was_to_the_bit(name: str, strategy: str) -> None:
    model = network(name).eval()
    fit = fit_of(model, overrides={"regularise.ema": 0.9} if strategy == "full" else {})
    plan = planned(model, strategy, epochs=6)
    before = state_of(model)
    curve = range_test(fit, plan, fresh=network(name), steps=30)
    after = state_of(model)
    assert all(torch.equal(before["tensors"][key], after["tensors"][key]) for key in before["tensors"])
    for what in ("modes", "needs", "random"):
        assert before[what] == after[what], what
    assert len(curve.rates) >= 10 and len(set(curve.losses)) > 1


@pytest.mark.parametrize("strategy", ["head-only", "lp-ft"])
def test_a_run_after_a_range_test_is_the_run_without_one(strategy: str) -> None:
    ends = []
    for is_tested in (False, True):
        model = network("test_resnet")
        fit, plan = fit_of(model), planned(model, strategy)
        if is_tested:
            range_test(fit, plan, fresh=network("test_resnet"), steps=20)
        fit_phases(fit, plan, fresh=network("test_resnet"))
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_first_losses_are_those_of_the_start_and_large_rates_run_away() -> None:
    model = network("test_resnet")
    fit = fit_of(model, overrides={"optim.name": "sgd"})
    heard: list[Event] = []
    watched = replace(fit, on_event=heard.append)
    curve = range_test(watched, planned(model, "full"), fresh=network("test_resnet"), low=1e-12, high=1e6, steps=80)
    assert curve.is_cut and len(curve.rates) < 80
    bars = [event.facts for event in heard if event.kind == "progress"]
    assert bars[-1]["done"] == bars[-1]["total"], "a bar that does not end stands there for good"
    again = range_test(fit, planned(model, "full"), fresh=network("test_resnet"), low=1e-12, high=1e6, steps=80)
    assert curve == again


def test_a_head_that_is_solved_has_no_rate() -> None:
    model = network("test_resnet")
    with pytest.raises(RecipeError, match="no phase of this run takes steps"):
        range_test(fit_of(model), planned(model, "linear-probe"), fresh=model)


def test_what_fails_meanwhile_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("test_resnet").eval()
    before, taken = state_of(model), tested.Step.take
    calls = []

    def failing(self: Any, *arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise ResourceError("memory ran out")
        return taken(self, *arguments, **more)

    monkeypatch.setattr(tested.Step, "take", failing)
    with pytest.raises(ResourceError):
        range_test(fit_of(model), planned(model, "full"), fresh=model, steps=20)
    after = state_of(model)
    assert all(torch.equal(before["tensors"][key], after["tensors"][key]) for key in before["tensors"])
    assert (before["modes"], before["needs"], before["random"]) == (after["modes"], after["needs"], after["random"])
