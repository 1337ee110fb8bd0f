"""What a step takes is counted before it is taken; what does not fit is taken in parts, or refused in words."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from finetune.backbone.load import architecture, skeleton
from finetune.errors import ResourceError
from finetune.train.memory import SHARE, Memory, fitting_batch, out_of_memory, step_memory, tried_batch
from finetune.types import FreezePlan, GroupPlan, LayerGroup

SIZE = (32, 32)


def counted(num_trained: int, *, size: tuple[int, int] = SIZE) -> Memory:
    made = skeleton(architecture("test_resnet", pretrained=False), num_classes=5, image_size=size[0])
    count = len(made.groups)
    plan = FreezePlan(
        tuple(GroupPlan(g.name, "all" if i >= count - num_trained else "none") for i, g in enumerate(made.groups))
    )
    return step_memory(made.model, plan, made.groups, image_size=size, optimiser="adamw")


def test_more_trained_layers_take_more() -> None:
    needs = [counted(num_trained) for num_trained in range(1, 5)]
    assert all(a.fixed < b.fixed and a.per_image <= b.per_image for a, b in pairwise(needs))
    assert needs[0].per_image < needs[-1].per_image


def test_four_times_the_pixels_take_four_times_the_memory() -> None:
    small, large = counted(9, size=(32, 32)).per_image, counted(9, size=(64, 64)).per_image
    assert 3.5 < large / small < 4.5


def test_what_a_linear_layer_keeps_is_its_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Flatten(), nn.Linear(3 * 32 * 32, 4, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(images) * 2)

    net = Net()
    plan = FreezePlan((GroupPlan("head", "all"),))
    groups = (LayerGroup("head", ("fc.weight",), 3 * 32 * 32 * 4, is_head=True),)
    need = step_memory(net, plan, groups, image_size=SIZE, optimiser="momentum")
    picture = 3 * 32 * 32 * 4
    assert need.fixed == picture * 4 * 3  # weight, gradient, momentum
    assert need.per_image == picture + picture + 3 * picture  # the input, what is kept of it, and on the way


@pytest.mark.parametrize(("free", "size"), [(10**6, 32), (1000 / SHARE, 16), (450 / SHARE, 4), (210 / SHARE, 2)])
def test_the_batch_is_halved_until_it_fits(free: float, size: int) -> None:
    assert fitting_batch(32, Memory(fixed=100, per_image=50), int(free) + 1) == size


def test_not_even_one_image_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ResourceError, match="one image") as caught:
        fitting_batch(8, Memory(fixed=2**30, per_image=2**30), 2**30)
    assert "--strategy head-only" in caught.value.hint


@pytest.mark.parametrize("limit", [1, 3, 20])
def test_a_trial_finds_what_does_not_run_out(limit: int) -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert tried_batch(20, attempt) == {1: 1, 3: 3, 20: 20}[limit]
    assert tried == {1: [20, 10, 5, 3, 2, 1], 3: [20, 10, 5, 3], 20: [20]}[limit]


def test_a_trial_that_never_fits_is_our_error() -> None:
    with pytest.raises(ResourceError, match="memory ran out with 1 images"):
        tried_batch(4, lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_running_out_names_the_flag_that_helps(error: Exception) -> None:
    with pytest.raises(ResourceError) as caught, out_of_memory(16):
        raise error
    assert "--micro-batch 8" in caught.value.hint


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(16):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert replace(Memory(1, 2), fixed=3).of(2) == 7
