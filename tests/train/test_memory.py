"""What does not fit is taken in parts, or refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune.errors import ResourceError
from finetune.train.memory import SHARE, Memory, fitting_batch, out_of_memory, tried_batch


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
