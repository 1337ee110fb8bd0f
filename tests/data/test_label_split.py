"""A split of images with several classes: every class gives its share, what belongs together stays together."""

from __future__ import annotations

import random

import pytest

from finetune.data.clashes import leaks
from finetune.data.split import assign, read, write
from finetune.tasks import Labels, Quantity
from finetune.types import Manifest, Sample


def drawn(count: int, shares: tuple[float, ...], *, per_group: int = 1, seed: int = 0) -> Manifest:
    rng = random.Random(seed)
    samples = []
    for place in range(count):
        classes = tuple(label for label, share in enumerate(shares) if rng.random() < share)
        group = f"g{place // per_group}" if per_group > 1 else None
        samples.append(Sample(f"{place:04}.jpg", Labels(classes, len(shares)), None, group, f"{place:032x}"))
    names = tuple(f"class{label}" for label in range(len(shares)))
    return Manifest("root", names, tuple(samples), task="multilabel")


@pytest.mark.parametrize("seed", range(3))
def test_every_class_gives_about_its_share(seed: int) -> None:
    manifest = assign(drawn(400, (0.5, 0.3, 0.1, 0.03)), val=0.2, test=0.1, seed=seed)
    totals = manifest.counts()
    for split, share in (("val", 0.2), ("test", 0.1)):
        counts = manifest.counts(split)
        assert all(abs(counts[name] - share * totals[name]) <= 2 for name in totals)
        assert len(manifest.split(split)) == pytest.approx(share * 400, abs=4)


def test_a_class_with_two_images_has_one_in_train_and_one_in_val() -> None:
    base = drawn(60, (0.5, 0.4))
    rare = tuple(Sample(f"rare{place}.jpg", Labels((0, 2), 3), None, None, f"{place:031x}a") for place in range(2))
    wider = tuple(Sample(s.file, Labels(s.target.classes, 3), None, None, s.digest) for s in base.samples)
    manifest = assign(Manifest("root", ("a", "b", "rare"), wider + rare, task="multilabel"), val=0.2, test=0.0, seed=0)
    assert manifest.counts("train")["rare"] == manifest.counts("val")["rare"] == 1


def test_groups_and_copies_stay_together() -> None:
    manifest = drawn(240, (0.5, 0.3, 0.1), per_group=4)
    manifest = assign(manifest, val=0.25, test=0.0, seed=1)
    assert list(leaks(manifest)) == []
    assert len(manifest.split("val")) == pytest.approx(60, abs=12)


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    manifest = drawn(100, (0.5, 0.2))
    one, again, other = (assign(manifest, val=0.2, test=0.0, seed=seed) for seed in (0, 0, 1))
    assert one == again != other


def test_sets_and_numbers_are_read_back_as_they_were_written(tmp_path) -> None:
    for manifest in (drawn(30, (0.5, 0.2)), numbers(30)):
        divided = assign(manifest, val=0.2, test=0.0, seed=0)
        write(divided, tmp_path / "split.csv")
        again = read(tmp_path / "split.csv", root="root", classes=manifest.classes, task=manifest.task)
        assert again.samples == divided.samples


def numbers(count: int) -> Manifest:
    samples = (Sample(f"{n:03}.jpg", Quantity(n / 7), None, None, f"{n:032x}") for n in range(count))
    return Manifest("root", ("length",), tuple(samples), task="regress")


def test_val_has_numbers_from_every_tenth() -> None:
    manifest = assign(numbers(200), val=0.2, test=0.0, seed=0)
    tenths = {int(sample.target.value * 7) // 20 for sample in manifest.split("val")}
    assert tenths == set(range(10))
