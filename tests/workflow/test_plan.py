"""What a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.prepare import costs
from finetune.strategy.strategies import STRATEGIES
from finetune.workflow import plan as planning
from tests.support import LAYOUTS


def test_a_plan_needs_neither_data_nor_weights() -> None:
    plan = finetune.plan(backbone="resnet18", strategy="top-k", top_k=2)
    assert plan.phases[0].plan.trained == ("layer3", "layer4", "head")
    assert plan.num_parameters == 11_689_512
    assert plan.num_trainable(plan.phases[0].plan) == 11_006_440


def test_auto_without_data_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(finetune.RecipeError, match="decides from the data") as error:
        finetune.plan(backbone="resnet18")
    assert "--strategy" in error.value.hint


def test_top_k_of_all_groups_says_that_it_is_full() -> None:
    plan = finetune.plan(backbone="test_resnet", top_k=5)
    assert plan.phases[0].plan.frozen == ()
    assert "the same as full" in plan.notes[0]


def test_top_k_beyond_all_groups_is_an_error() -> None:
    with pytest.raises(finetune.RecipeError, match="has 5 layer groups"):
        finetune.plan(backbone="resnet18", strategy="top-k", top_k=6)


def test_full_with_reinit_says_that_it_is_from_scratch() -> None:
    assert "from scratch" in finetune.plan(backbone="test_resnet", strategy="full", reinit=True).notes[0]


def test_a_number_that_the_strategy_does_not_use_is_an_error() -> None:
    with pytest.raises(finetune.RecipeError, match="top_k has no meaning"):
        finetune.plan(backbone="resnet18", strategy="full", top_k=2)


def test_a_layer_group_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(finetune.RecipeError, match="Did you mean 'layer4'"):
        finetune.plan(backbone="resnet18", probe_at="layr4")


def test_a_probe_at_an_inner_group_holds_no_later_ones() -> None:
    plan = finetune.plan(backbone="test_resnet", strategy="linear-probe", probe_at="layer2")
    assert [group.name for group in plan.groups] == ["stem", "layer1", "layer2", "head"]
    assert plan.groups[-1].num_parameters == 48 * 1000 + 1000


def test_classes_are_counted_from_the_data(drawn: Path) -> None:
    assert finetune.plan(drawn, backbone="test_resnet", strategy="full").num_classes == 6


def test_vgg16_has_the_figures_of_the_notes() -> None:
    layers = finetune.plan(backbone="vgg16", strategy="full", layers=True).layers
    assert layers is not None
    assert layers.num_activations == pytest.approx(15.2e6, abs=0.05e6)
    assert layers.activation_bytes() / 1e6 == pytest.approx(61, abs=0.5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("backbone", LAYOUTS)
def test_every_phase_covers_every_group_once(strategy: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "costs", lambda *_, **__: ())  # what it takes is another question, and slow
    plan = finetune.plan(backbone=backbone, strategy=strategy)
    for phase in plan.phases:
        assert [item.group for item in phase.plan.groups] == [group.name for group in plan.groups]
        assert phase.plan.trained[-1] == "head"
    assert plan.to_json()["phases"][0]["num_trainable"] > 0


def test_the_cache_of_a_plan_grows_with_the_images() -> None:
    costs = [
        finetune.plan(backbone="test_resnet", strategy="head-only", image_size=64, images=n).costs for n in (100, 1000)
    ]
    small, large = (cost[0].cut.cache_bytes for cost in costs)
    values = costs[0][0].cut.shapes[0][0]
    assert small == 4 * values * (80 * 4 + 20)  # float32; four views of train, one of val
    assert large == 10 * small


def test_a_plan_estimates_memory_and_time_and_what_the_cache_saves() -> None:
    head, full = (
        finetune.plan(backbone="test_resnet", strategy=name, epochs=10, image_size=64, images=500).costs[0]
        for name in ("head-only", "full")
    )
    assert 0 < head.seconds < full.seconds
    assert 0 < head.memory_bytes < full.memory_bytes
    assert head.cut.saved_share > 0.5
    assert full.cut is None


def test_a_plan_says_what_a_gpu_would_hold_and_what_fits_without_one() -> None:
    asked: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "batch_size": 32, "image_size": 64}
    both = finetune.plan(strategy="full", memory=50_000_000, **asked).memory
    assert [held.precision for held in both] == ["float32", "bfloat16"]
    assert all(held.passing is None and held.step is not None for held in both)
    assert 32 < both[0].largest < both[1].largest
    (probe,) = finetune.plan(
        strategy="linear-probe", memory=True, overrides={"train.precision": "bfloat16"}, **asked
    ).memory
    assert probe.step is None and probe.passing is not None and probe.largest is None
    (top,) = finetune.plan(
        strategy="top-k", top_k=1, memory=1000, overrides={"train.precision": "float32"}, **asked
    ).memory
    assert top.largest == 0 and top.total == max(top.step.total, top.passing.total)


def test_a_cached_run_takes_no_longer_for_more_epochs_on_the_trunk() -> None:
    short, long = (
        finetune.plan(backbone="test_resnet", strategy="head-only", epochs=n, images=500, image_size=64).costs[0].cut
        for n in (5, 50)
    )
    assert short.cache_bytes == long.cache_bytes
    assert short.saved_share < long.saved_share < 1


def test_a_solved_head_saves_nothing_and_is_cached_for_later_runs() -> None:
    cost = finetune.plan(backbone="test_resnet", strategy="linear-probe", image_size=64, images=100).costs[0]
    assert (cost.cut.views, cost.cut.saved_share) == (4, 0)


def test_a_plan_shows_what_is_changed_of_training() -> None:
    settings: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "strategy": "full"}
    changed = finetune.plan(overrides={"optim.name": "lion", "regularise.mixup": 0.2}, **settings)
    assert "options: optim.name = lion, regularise.mixup = 0.2" in changed.notes
    assert not any(note.startswith("options") for note in finetune.plan(**settings).notes)


def test_operations_are_counted_once_for_a_plan_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    count = costs.multiplications
    monkeypatch.setattr(costs, "multiplications", lambda *args, **more: counted.append(1) or count(*args, **more))
    asked = {"backbone": "test_resnet", "pretrained": False, "image_size": 64}
    first, second = (finetune.plan(strategy="top-k", top_k=1, **asked).costs for _ in range(2))
    assert len(counted) == 2  # the whole and the trunk
    assert [cost.cut for cost in first] == [cost.cut for cost in second]
    finetune.plan(strategy="top-k", top_k=2, **asked)
    assert len(counted) == 4
