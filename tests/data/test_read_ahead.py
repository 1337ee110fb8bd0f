"""Batches that threads make are those that a process makes one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.data import loaders, sources
from finetune.data.loaders import ImageBatches, ImageDataset
from finetune.errors import DataError
from finetune.images.transforms import augmented_view, plain_view
from finetune.sections import AugmentSection
from finetune.types import Preprocessing
from tests.support import random_states

SETTINGS = Preprocessing((24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
Make = Callable[..., ImageBatches]


@pytest.fixture
def make(image_folder: Callable[..., Path]) -> Make:
    manifest = sources.read(image_folder(per_class=9))

    def batches(*, seed: int | None = None, threads: int | None = None) -> ImageBatches:
        view = plain_view(SETTINGS) if seed is None else augmented_view(SETTINGS, AugmentSection(color_jitter=0.3))
        dataset = ImageDataset(manifest.root, manifest.samples, view, SETTINGS, seed=seed)
        cpu = torch.device("cpu")
        made = ImageBatches(dataset, preprocessing=SETTINGS, batch_size=4, device=cpu, is_drawn_alone=True)
        made.num_threads = made.num_threads if threads is None else threads
        return made

    return batches


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("start", [0, 2, 5])
def test_they_are_the_same_in_the_same_order(make: Make, seed: int | None, start: int) -> None:
    expected = list(make(seed=seed, threads=0).epoch(start=start))
    found = list(make(seed=seed).epoch(start=start))
    assert len(found) == len(expected) == 5 - start
    for (images, targets), (others, wanted) in zip(found, expected, strict=True):
        assert torch.equal(images, others) and torch.equal(targets, wanted)


def test_augmented_views_are_made_by_one_thread_and_leave_the_generators_alone(make: Make) -> None:
    batches = make(seed=3)
    assert batches.num_threads == 1
    before = random_states()
    list(batches.epoch())
    assert repr(random_states()) == repr(before)


def test_plain_views_are_made_by_as_many_as_there_are_cores(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "num_cores", lambda most: 5)
    assert make().num_threads == 5


def test_where_others_draw_too_no_thread_does(make: Make) -> None:
    made = make(seed=3)
    alone = ImageBatches(made.dataset, preprocessing=SETTINGS, batch_size=4, device=torch.device("cpu"), seed=3)
    assert alone.num_threads == 0


def test_a_pass_that_is_left_early_leaves_no_thread_behind(make: Make) -> None:
    before = threading.active_count()
    passing = make().epoch()
    next(passing)
    passing.close()
    assert threading.active_count() == before


def test_a_file_that_vanished_is_one_error(make: Make) -> None:
    batches = make()
    Path(batches.dataset.root, batches.dataset.files[9]).unlink()
    with pytest.raises(DataError, match="could be read when the data was scanned"):
        list(batches.epoch())


def test_no_more_than_three_batches_are_in_the_making(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, asked = make(threads=2), [0]
    fetch = ImageDataset.__getitem__

    def counted(self: ImageDataset, key: tuple[int, int, int]) -> object:
        asked[0] += 1
        return fetch(self, key)

    monkeypatch.setattr(ImageDataset, "__getitem__", counted)
    passing = batches.epoch()
    next(passing)
    assert asked[0] <= 3 * 4
    passing.close()
