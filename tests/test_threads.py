"""With how many threads is computed: by times that the tests make up, so that no machine is too busy for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import finetune
from finetune import device, threads
from finetune.device import Compute
from finetune.settings import TrainSection


@pytest.fixture
def four() -> Iterator[None]:
    threads._fastest.cache_clear()
    with threads.threads_at(4):
        yield
    threads._fastest.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({4: 1.0, 2: 2.0, 1: 4.0}, 4),
        ({4: 1.4, 2: 1.0, 1: 1.2}, 4),  # that may be chance
        ({4: 90.0, 2: 40.0, 1: 4.0}, 1),
        ({4: 9.0, 2: 2.0, 1: 4.0}, 2),
    ],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(
    four: None, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], expected: int
) -> None:
    monkeypatch.setattr(threads, "_seconds", seconds.__getitem__)
    assert threads.fastest_threads() == expected
    assert torch.get_num_threads() == 4


def test_layers_are_timed_with_the_threads_that_are_asked(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    conv2d = threads.conv2d
    monkeypatch.setattr(threads, "conv2d", lambda *args: used.append(torch.get_num_threads()) or conv2d(*args))
    assert threads._seconds(2) > 0
    assert set(used) == {2}


def test_a_busy_machine_is_told_of_and_a_number_that_is_named_is_taken(
    four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "fastest_threads", lambda: 1)
    assert "computing with 1 thread of 4" in Compute.of(TrainSection()).note
    named = Compute.of(TrainSection(threads=3))
    assert (named.threads, named.note) == (3, "")
    with named.in_force():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 4


def test_none_is_no_number_of_threads() -> None:
    with pytest.raises(finetune.RecipeError, match=r"train\.threads"):
        finetune.plan(strategy="full", backbone="test_resnet", threads=0)


def test_many_more_threads_than_cores_are_refused_at_once() -> None:
    with pytest.raises(finetune.ResourceError, match=r"train\.threads = 5000: this process has \d+ cores?"):
        finetune.plan(strategy="full", backbone="test_resnet", threads=5000)
