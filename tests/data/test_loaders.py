"""Batches depend on (seed, phase, epoch, image) and on nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data import sources
from finetune.data.loaders import ImageBatches, ImageDataset, Texts, auto_workers
from finetune.errors import DataError
from finetune.images.transforms import augmented_view, normalise, plain_view
from finetune.sections import AugmentSection
from finetune.types import Preprocessing
from tests.support import random_states

Make = Callable[..., ImageBatches]
Batches = list[tuple[Tensor, Tensor]]
CPU = torch.device("cpu")
SETTINGS = Preprocessing((24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def make(image_folder: Callable[..., Path]) -> Make:
    """A function that makes batches of the same noise images."""
    manifest = sources.read(image_folder(per_class=7))

    def batches(*, seed: int | None = 0, count: int = 14, workers: int = 0, batch_size: int = 4) -> ImageBatches:
        view = plain_view(SETTINGS) if seed is None else augmented_view(SETTINGS, AugmentSection(color_jitter=0.3))
        dataset = ImageDataset(manifest.root, manifest.samples[:count], view, SETTINGS, seed=seed)
        return ImageBatches(
            dataset, preprocessing=SETTINGS, batch_size=batch_size, device=CPU, workers=workers, seed=seed
        )

    return batches


def same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(i, j) for (x, i), (y, j) in zip(a, b, strict=True)
    )


def keys(batches: ImageBatches, epoch: int = 0, *, phase: int = 0, start: int = 0) -> list[list[int]]:
    """The indices of the images of every batch, without opening one."""
    order = batches.order
    order.phase, order.epoch, order.start = phase, epoch, start
    found = list(order)
    assert all(key[:2] == (phase, epoch) for batch in found for key in batch)
    return [[key[2] for key in batch] for batch in found]


def test_batches_are_normalised_floats_with_class_indices(make: Make) -> None:
    (images, targets), *_ = list(make(seed=None).epoch())
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (4, 3, 24, 24))
    assert (targets.dtype, targets.tolist()) == (torch.int64, [0, 0, 0, 0])
    dataset = make(seed=None).loader.dataset
    expected = normalise(torch.stack([dataset[0, 0, index][0] for index in range(4)]), SETTINGS)
    torch.testing.assert_close(images, expected, atol=0, rtol=0)


def test_without_a_seed_the_samples_come_in_order_every_epoch(make: Make) -> None:
    batches = make(seed=None)
    targets = torch.cat([targets for _, targets in batches.epoch()])
    assert targets.tolist() == [0] * 7 + [1] * 7
    assert same(list(batches.epoch()), list(batches.epoch(5, phase=2)))


def test_two_workers_yield_what_none_yields(make: Make) -> None:
    alone, together = make(workers=0), make(workers=2)
    for phase, epoch in ((0, 0), (0, 1), (3, 1)):
        assert same(list(alone.epoch(epoch, phase=phase)), list(together.epoch(epoch, phase=phase)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_entered_in_its_middle_goes_on_as_the_whole(make: Make, workers: int) -> None:
    batches = make(workers=workers)
    whole = list(batches.epoch(1))
    for start in (1, 3, 4):
        assert same(list(batches.epoch(1, start=start)), whole[start:])
    assert len(whole) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_early_spoils_none_that_follows(make: Make, workers: int) -> None:
    expected = list(make().epoch(1))
    batches = make(workers=workers)
    next(batches.epoch(0))
    assert same(list(batches.epoch(1)), expected)


def test_the_same_place_yields_the_same_and_each_other_place_another(make: Make) -> None:
    def first(seed: int = 0, epoch: int = 0, phase: int = 0) -> Batches:
        return list(make(seed=seed).epoch(epoch, phase=phase))

    assert same(first(), first())
    for place in ({"epoch": 1}, {"phase": 1}, {"seed": 1}):
        assert not same(first(), first(**place))


def test_order_and_augmentation_both_differ_between_epochs(make: Make) -> None:
    batches = make()
    assert keys(batches, 0) != keys(batches, 1) != keys(batches, 1, phase=1)
    image = batches.loader.dataset
    assert not torch.equal(image[0, 0, 3][0], image[0, 1, 3][0])
    assert not torch.equal(image[0, 0, 3][0], image[1, 0, 3][0])
    assert torch.equal(image[1, 1, 3][0], image[1, 1, 3][0])


def test_the_augmentation_of_an_image_does_not_depend_on_its_index(make: Make) -> None:
    dataset = make().loader.dataset
    before = dataset[0, 0, 9][0]
    dataset.files = Texts(dataset.files[index] for index in range(5, 14))
    dataset.digests = Texts(dataset.digests[index] for index in range(5, 14))
    assert torch.equal(dataset[0, 0, 4][0], before)


def test_the_augmentation_of_a_scanned_image_does_not_depend_on_its_name(make: Make) -> None:
    dataset = make().loader.dataset
    place = Path(dataset.root, "other name.jpg")
    place.write_bytes(Path(dataset.root, dataset.files[0]).read_bytes())
    found = []
    for file, digest in ((dataset.files[0], "x"), (place.name, "x"), (place.name, "y")):
        dataset.files, dataset.digests = Texts([file]), Texts([digest])
        found.append(dataset[0, 0, 0][0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_texts_are_kept_as_they_are() -> None:
    texts = ["plain", "", "línea\n2", "\udcff not UTF-8", "語"]
    assert [Texts(texts)[index] for index in range(len(Texts(texts)))] == texts


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_have_no_influence(make: Make, workers: int) -> None:
    found = []
    for seed in (1, 2):
        seed_all(seed)
        found.append(list(make(workers=workers).epoch()))
    assert same(*found)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_as_they_were(make: Make, workers: int, seed: int | None) -> None:
    seed_all(7)
    before = random_states()
    batches = make(seed=seed, workers=workers)
    for number, _ in enumerate(batches.epoch()):
        assert random_states() == before, f"after batch {number}"
    assert len(list(batches.epoch(1))) == 4
    assert random_states() == before


@pytest.mark.parametrize("batch_size", [3, 4, 5, 8, 32])
def test_no_batch_is_left_with_a_single_image(make: Make, batch_size: int) -> None:
    for count in range(2, 15):
        batches = make(count=count, batch_size=batch_size)
        sizes = [len(batch) for batch in keys(batches)]
        assert min(sizes) >= 2 and max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == len(batches)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 13, 14, 15])
def test_every_image_comes_exactly_once_an_epoch(make: Make, batch_size: int, seed: int | None) -> None:
    batches = make(batch_size=batch_size, seed=seed)
    for epoch in range(3):
        assert sorted(index for batch in keys(batches, epoch) for index in batch) == list(range(14))
        assert max(len(batch) for batch in keys(batches, epoch)) <= batch_size


def test_the_pictures_of_an_epoch_are_all_the_pictures(make: Make) -> None:
    plain = {image.numpy().tobytes() for images, _ in make(seed=None).epoch() for image in images}
    assert len(plain) == 14
    batches = make()
    batches.loader.dataset.view = plain_view(SETTINGS)
    found = Counter(image.numpy().tobytes() for images, _ in batches.epoch() for image in images)
    assert set(found) == plain and set(found.values()) == {1}


def test_no_images_are_no_batches(make: Make) -> None:
    batches = make(count=0)
    assert len(batches) == batches.num_images == len(list(batches.epoch())) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanished_is_one_clear_error_with_any_number_of_workers(make: Make, workers: int) -> None:
    batches = make(workers=workers)
    gone = batches.loader.dataset.files[5]
    Path(batches.loader.dataset.root, gone).unlink()
    with pytest.raises(DataError) as caught:
        list(batches.epoch())
    assert caught.value.message.startswith(f"{gone} could be read when the data was scanned and cannot now:")
    assert "Traceback" not in caught.value.message and "\n" not in caught.value.message


def test_small_sets_get_no_workers_and_large_ones_at_most_eight() -> None:
    assert auto_workers(10, CPU) == 0
    assert 0 <= auto_workers(10**6, CPU) <= 4
    assert 0 <= auto_workers(10**6, torch.device("cuda")) <= 8


def test_a_machine_of_many_cores_gets_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert (auto_workers(10**6, CPU), auto_workers(10**6, torch.device("cuda"))) == (4, 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert auto_workers(10**6, torch.device("cuda")) == 0
