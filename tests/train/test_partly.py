"""Strategies that train a part of each layer: what moves, how much of it, and that the network stays plain."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.func import functional_call

import finetune
from finetune.backbone.groups import layer_groups
from finetune.errors import RecipeError
from finetune.features.sources import of_trunk_batch
from finetune.train.adapters import Adapters
from finetune.train.phases import fit_phases
from finetune.types import MOVES, FreezePlan, GroupPlan
from tests.support import LAYOUTS, TINY, mostly_slow
from tests.train.fitting import Drawn, assert_resumes_to_the_same_bits, fit_of, network, planned

PARTLY = {"norm-only": "norm", "bias-only": "bias", "lora": "lora"}


def moved(model: torch.nn.Module, name: str) -> set[str]:
    before = network(name).state_dict()
    return {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("strategy", PARTLY)
def test_what_is_named_moves_and_nothing_else_to_the_bit(strategy: str, name: str) -> None:
    model = network(name)
    groups = layer_groups(model)
    fit_phases(fit_of(model), planned(strategy, model, lr=1e-2), fresh=network(name))
    trains = PARTLY[strategy]
    allowed = {key for group in groups for key in (group.parameters if group.is_head else group.moved(trains))}
    changed = moved(model, name)
    assert changed <= allowed
    backbone = {key for group in groups if not group.is_head for key in group.moved(trains)}
    least = 0.3 if name == "test_resnet" else 0.9  # a new resnet's residual branches begin at zero and learn later
    assert len(changed & backbone) > least * len(backbone)
    assert set(model.state_dict()) == set(network(name).state_dict())


MORE = {"regularise.ema": 0.5, "regularise.mixup": 0.2, "train.micro_batch": 2}
STOPPED = list(product(PARTLY, ["test_resnet", "test_vit"], [{}, MORE]))
QUICK = [("norm-only", "test_resnet", MORE), ("bias-only", "test_vit", {}), ("lora", "test_vit", MORE)]


@pytest.mark.parametrize(("strategy", "name", "overrides"), mostly_slow(STOPPED, *QUICK))
def test_what_is_stopped_goes_on_to_the_same_bits(strategy: str, name: str, overrides: dict[str, Any]) -> None:
    assert_resumes_to_the_same_bits(strategy, name, overrides)


def test_what_is_added_to_a_matrix_has_the_rank_that_is_asked_for() -> None:
    model = network("test_vit")
    groups = layer_groups(model)
    plan = planned("lora", model, lr=1e-2)
    narrow = [FreezePlan(tuple(_with_rank(item) for item in phase.plan.groups)) for phase in plan]
    phase = plan[0].__class__(**{**{f: getattr(plan[0], f) for f in plan[0].__slots__}, "plan": narrow[0]})
    fit_phases(fit_of(model), (phase,), fresh=network("test_vit"))
    before = network("test_vit").state_dict()
    names = [name for group in groups if not group.is_head for name in group.moved("lora")]
    ranks = [int(torch.linalg.matrix_rank((model.state_dict()[n] - before[n]).flatten(1), rtol=1e-3)) for n in names]
    assert set(ranks) == {2}


def _with_rank(item: GroupPlan) -> GroupPlan:
    return GroupPlan(**{**{f: getattr(item, f) for f in item.__slots__}, "rank": 2 if item.rank else 0})


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_adapted_network_answers_as_the_plain_one_that_is_left(name: str) -> None:
    model = network(name).eval()
    groups = layer_groups(model)
    base = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    plan = FreezePlan(tuple(GroupPlan(g.name, "all" if g.is_head else "lora", rank=4) for g in groups))
    adapters = Adapters(model, plan, groups, base)
    images = of_trunk_batch(Drawn().images)
    with torch.no_grad():
        assert torch.equal(functional_call(model, adapters.weights(), (images,)), model(images))  # B is zero
        for _, outer in adapters.factors.values():
            outer.normal_(std=0.02)
        adapted = functional_call(model, adapters.weights(), (images,))
        assert not torch.allclose(adapted, model(images))
        adapters.put()
        assert torch.equal(adapted, model(images))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_has_a_kind_and_their_numbers_add_up(name: str) -> None:
    model = network(name)
    for group in layer_groups(model):
        assert len(group.kinds) == len(group.parameters)
        for trains in MOVES:
            plan = GroupPlan(group.name, trains, rank=3)  # type: ignore[arg-type]
            names = group.moved(trains)  # type: ignore[arg-type]
            assert trains == "lora" or group.num_trained(plan) == sum(model.get_parameter(n).numel() for n in names)
            assert group.num_trained(plan) < group.num_parameters or not names or trains == "lora"


@pytest.mark.parametrize("strategy", mostly_slow([(name,) for name in PARTLY], ("lora",)))
def test_a_run_leaves_a_plain_timm_model(strategy: str, image_folder: Any, tmp_path: Path) -> None:
    more: dict[str, Any] = {**TINY, "backbone": "test_vit", "strategy": strategy, "epochs": 2}
    run = finetune.run(image_folder(), out=tmp_path / "run", **more)
    model = timm.create_model(f"local-dir:{run.folder / 'model'}", pretrained=True)
    assert set(model.state_dict()) == set(timm.create_model("test_vit", num_classes=2, img_size=32).state_dict())
    plan = json.loads((run.folder / "plan.json").read_text())
    assert {item["trains"] for item in plan["phases"][0]["plan"]["groups"]} == {PARTLY[strategy], "all"}
    finetune.export(run.folder)  # which proves it equal
    assert list((run.folder / "exports").glob("*.onnx"))


def test_a_network_without_what_is_to_be_trained_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no norms"):
        finetune.plan(backbone="lenet5", pretrained=False, strategy="norm-only")
    with pytest.raises(RecipeError, match=r"strategy\.reinit has no meaning"):
        finetune.plan(backbone="test_vit", pretrained=False, strategy="lora", reinit=True)
    with pytest.raises(RecipeError, match=r"strategy\.lora_rank has no meaning"):
        finetune.plan(backbone="test_vit", pretrained=False, strategy="full", overrides={"strategy.lora_rank": 4})
