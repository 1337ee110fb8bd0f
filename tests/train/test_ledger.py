"""What a step holds is counted on paper as torch takes it, part by part, before anything is computed."""

from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from finetune import recipe as recipes
from finetune.backbone.load import Backbone
from finetune.prepare.batch_size import phase_memory
from finetune.prepare.inputs import skeleton_of
from finetune.settings import Recipe
from finetune.train.ledger import Held, largest_batch, pass_held, step_held, step_memory
from finetune.types import FreezePlan, GroupPlan, LayerGroup, Phase, Preprocessing
from tests.support import LAYOUTS, ROOT

bench = runpy.run_path(str(ROOT / "benchmarks" / "step_memory.py"))
NETWORKS = ("resnet50", "vit_base_patch16_224", "convnext_base")


def recipe_of(backbone: str = "test_resnet", *, image_size: int = 64, **more: Any) -> Recipe:
    fixed = {"backbone.name": backbone, "backbone.pretrained": False, "backbone.image_size": image_size}
    return recipes.load(overrides={**fixed, "optim.weight_decay": 0.05, **more})


def phase_of(backbone: Backbone, *, last: int, trains: Any = "all") -> Phase:
    begins = len(backbone.groups) - last
    plans = (GroupPlan(g.name, trains if i >= begins else "none", rank=8) for i, g in enumerate(backbone.groups))
    return Phase("phase", FreezePlan(tuple(plans)), epochs=1, lr=1e-3)


def held_of(
    backbone: str = "test_resnet", *, last: int = 99, image_size: int = 64, batch: int = 8, **more: Any
) -> Held:
    recipe = recipe_of(backbone, image_size=image_size)
    skeleton = skeleton_of(recipe, num_classes=5)
    phase = phase_of(skeleton, last=last, trains=more.pop("trains", "all"))
    return step_held(skeleton, phase, recipe, batch=batch, precision=more.pop("precision", "float32"), **more)


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", LAYOUTS)
def test_what_is_counted_is_what_torch_takes(backbone: str, precision: str, folds: bool) -> None:
    if precision == "bfloat16" and backbone == "test_convnext":
        pytest.skip("a CPU takes its layer norms in bfloat16, a GPU in float32")
    prepared = bench["planned"](backbone, "full", precision, "cpu")
    assert prepared.recipe.train.fold_norms is True
    prepared = replace(prepared, recipe=recipes.update(prepared.recipe, {"train.fold_norms": folds}))
    skeleton = skeleton_of(prepared.recipe, num_classes=bench["NUM_CLASSES"])
    held = step_held(skeleton, prepared.phases[0], prepared.recipe, batch=32, precision=precision)
    assert held.total == pytest.approx(bench["measured"](prepared, 32)["allocator"], rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_what_is_counted_is_within_a_fifth_of_what_a_gpu_takes(backbone: str, precision: str) -> None:
    gc.collect()  # what earlier tests have left on the device
    prepared = bench["planned"](backbone, "full", precision, "cuda")
    skeleton = skeleton_of(prepared.recipe, num_classes=bench["NUM_CLASSES"])
    held = step_held(skeleton, prepared.phases[0], prepared.recipe, batch=32, precision=precision)
    assert held.total == pytest.approx(bench["measured"](prepared, 32)["allocator"], rel=0.2)


def test_norms_in_their_convolutions_keep_less() -> None:
    skeleton = skeleton_of(recipe := recipe_of(), num_classes=5)
    held = {
        folds: step_held(
            skeleton, phase_of(skeleton, last=99), recipes.update(recipe, {"train.fold_norms": folds}), batch=8,
            precision="float32",
        )
        for folds in (False, True)
    }  # fmt: skip
    assert held[True].kept < 0.8 * held[False].kept and held[True].weights == held[False].weights


def test_the_parts_of_a_linear_layer_are_those_of_the_formula() -> None:
    class Net(nn.Module):
        num_classes = 4

        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Flatten(), nn.Linear(3 * 32 * 32, 4, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(images) * 2)

    picture = 3 * 32 * 32 * 4
    group = LayerGroup("head", ("fc.weight",), 3 * 32 * 32 * 4, is_head=True, kinds=("matrix",))
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    backbone: Any = SimpleNamespace(model=Net(), groups=(group,), preprocessing=preprocessing)
    phase = Phase("phase", FreezePlan((GroupPlan("head", "all"),)), epochs=1, lr=0.1)
    recipe = recipe_of(**{"optim.name": "momentum"})
    held = step_held(backbone, phase, recipe, batch=10, precision="float32")
    assert held.weights == 4 * picture
    assert held.averages == 2 * 4 * picture  # its momentum, and the copy that would be delivered
    assert held.inputs == 10 * picture + 512  # images, and a block with their classes
    assert held.kept + held.gradients + held.passing >= 10 * picture  # what the layer was given
    assert backbone.model.fc.weight.device.type == "cpu"
    assert backbone.model.fc.weight.untyped_storage().nbytes() == 4 * picture


def test_more_trained_layers_hold_more() -> None:
    held = [held_of(last=last, batch=64) for last in (1, 2, 3, 5)]
    assert all(a.averages < b.averages and a.total < b.total for a, b in pairwise(held))


def test_four_times_the_pixels_keep_four_times_as_much() -> None:
    small, large = (held_of(image_size=size, batch=32).kept for size in (64, 128))
    assert 3.8 < large / small < 4.2


def test_norms_of_layers_stay_in_float32_on_a_gpu() -> None:
    conv = held_of(batch=64, precision="bfloat16").kept / held_of(batch=64).kept
    norm = held_of("test_convnext", batch=64, precision="bfloat16").kept / held_of("test_convnext", batch=64).kept
    assert 0.5 <= conv < 0.6 < norm < 0.8


def test_the_tail_alone_holds_less_than_the_network() -> None:
    whole, tail = held_of(last=2, batch=64), held_of(last=2, batch=64, is_cut=True)
    assert tail.total < whole.total
    assert (tail.weights, tail.averages) == (whole.weights, whole.averages)


def test_lora_holds_the_pretrained_weights_beside_those_that_are_trained() -> None:
    assert held_of("test_vit", trains="lora").averages > held_of("test_vit").weights


def test_a_pass_of_the_trunk_keeps_nothing() -> None:
    recipe = recipe_of()
    skeleton = skeleton_of(recipe, num_classes=5)
    held = pass_held(skeleton, phase_of(skeleton, last=2), batch=128, precision="float32")
    assert held.kept == held.averages == held.gradients == 0
    assert held.inputs == 128 * 3 * 64 * 64 * 4
    assert held.passing > held.inputs


def test_counting_leaves_the_network_as_it_was() -> None:
    recipe = recipe_of()
    skeleton = skeleton_of(recipe, num_classes=5)
    step_held(skeleton, phase_of(skeleton, last=1), recipe, batch=4, precision="bfloat16")
    assert all(p.device.type == "meta" and p.requires_grad for p in skeleton.model.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_of_a_process_that_has_counted_can_train() -> None:
    code = (
        "import os, torch; from finetune.workflow.plan import plan\n"
        "plan(backbone='test_vit', pretrained=False, strategy='full', memory=True)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    torch.ones(2, requires_grad=True).sum().backward()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_is_exact_at_the_batch_and_never_less_below_it() -> None:
    def moments(batch: int) -> Held:
        return Held(weights=100, averages=200, kept=max(200, 100 + 20 * batch, 30 * batch))

    memory = step_memory(moments(64), 64, trained=100)
    assert memory.of(64) == moments(64).total
    assert all(memory.of(batch) >= moments(batch).total for batch in range(1, 65))
    assert step_memory(moments(4), 4, trained=500).of(4) == 1300  # a step of the optimiser is the fullest moment


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_what_is_counted_for_a_batch_is_not_exceeded_by_smaller_ones(backbone: str) -> None:
    recipe = recipe_of(backbone)
    skeleton = skeleton_of(recipe, num_classes=5)
    phase = phase_of(skeleton, last=99)
    memory = phase_memory(skeleton, phase, recipe, batch=64, precision="float32")
    for batch in (1, 2, 8, 33, 64):
        assert memory.of(batch) >= step_held(skeleton, phase, recipe, batch=batch, precision="float32").total


@pytest.mark.parametrize("limit", [0, 529, 530, 531, 1000, 5000, 99_999, 10**9])
def test_the_largest_batch_is_the_one_that_counting_up_would_find(limit: int) -> None:
    def total(batch: int) -> int:
        return max(500 + 30 * batch, 31 * batch, 40 * batch - 3000)

    most = 2000
    found = max((batch for batch in range(1, most + 1) if total(batch) <= limit), default=0)
    assert largest_batch(total, limit, most=most) == found
