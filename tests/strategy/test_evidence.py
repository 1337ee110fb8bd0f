"""The sample that is measured keeps the shares of the classes; the evidence is what the probes say."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from finetune.evaluation.intervals import wilson
from finetune.strategy.evidence import evidence_of, spread, stratified_sample
from finetune.tasks import Target
from finetune.types import Manifest, Sample
from tests.support import loo_ridge


def manifest(*counts: int, num_val: int = 7) -> Manifest:
    samples = [
        Sample(f"class{label}/{number}.jpg", Target(label), "train")
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    samples += [Sample(f"val/{number}.jpg", Target(0), "val") for number in range(num_val)]
    return Manifest("root", tuple(f"class{label}" for label in range(len(counts))), tuple(samples))


def counts_of(sample: tuple[Sample, ...], num_classes: int) -> list[int]:
    return [sum(item.target.index == label for item in sample) for label in range(num_classes)]


@pytest.mark.parametrize(
    "counts",
    [(500, 500), (900, 90, 10), (13, 17, 11, 400), (3000, *[1] * 600), tuple(range(1, 60)), (5000, *[5] * 100)],
)
@pytest.mark.parametrize("most", [50, 100])
def test_every_class_keeps_its_share_to_the_image(counts: tuple[int, ...], most: int) -> None:
    sample = stratified_sample(manifest(*counts), seed=0, most=most)
    assert len(sample) == most == len({item.file for item in sample})
    assert {item.split for item in sample} == {"train"}
    for found, count in zip(counts_of(sample, len(counts)), counts, strict=True):
        assert abs(found - most * count / sum(counts)) < 1


def test_many_classes_have_four_images_each() -> None:
    sample = stratified_sample(manifest(*[9] * 500), seed=0)
    assert counts_of(sample, 500) == [4] * 500
    assert len(stratified_sample(manifest(700, 700), seed=0)) == 600


def test_of_very_many_classes_a_thousand_are_drawn_whatever_their_order() -> None:
    data = manifest(*[6] * 1203)
    sample = stratified_sample(data, seed=0)
    assert len(sample) == 4000
    counts = counts_of(sample, 1203)
    assert set(counts) == {0, 4}
    drawn = {data.classes[index] for index, count in enumerate(counts) if count}
    turned = replace(
        data,
        classes=data.classes[::-1],
        samples=tuple(replace(item, target=Target(1202 - item.target.index)) for item in data.samples),
    )
    assert {turned.classes[item.target.index] for item in stratified_sample(turned, seed=0)} == drawn
    assert {data.classes[item.target.index] for item in stratified_sample(data, seed=1)} != drawn
    assert sum(count > 0 for count in counts_of(stratified_sample(data, seed=0, most=2406), 1203)) == 1203


def test_a_thousand_classes_are_all_probed_and_evidence_says_how_many_were() -> None:
    data = manifest(*[5] * 1000)
    assert counts_of(stratified_sample(data, seed=0), 1000) == [4] * 1000
    targets = torch.tensor([2, 5, 2, 5, 2, 5, 9, 9])
    found = evidence_of(data, {"layer4": torch.randn(8, 3)}, targets)
    assert (found.size.num_classes_probed, found.size.num_classes) == (3, 1000)


@pytest.mark.parametrize("count", [3, 7])
def test_the_gain_of_images_too_few_to_be_halved_is_not_known(count: int) -> None:
    targets = torch.arange(count) % 2
    features = torch.nn.functional.one_hot(targets, 2) + 0.01 * torch.randn(count, 2, generator=torch.Generator())
    found = evidence_of(manifest(count, count), {"layer4": features}, targets)
    assert (found.size.gain.value, found.size.gain.low, found.size.gain.high) == (0, -1, 1)


def test_a_small_train_split_is_taken_whole() -> None:
    data = manifest(30, 20)
    assert stratified_sample(data, seed=0, most=50) == data.split("train")
    assert len(stratified_sample(data, seed=0, most=49)) == 49


def test_the_sample_depends_on_the_seed_and_stands_in_the_order_of_the_manifest() -> None:
    data = manifest(300, 200, 100)
    sample = stratified_sample(data, seed=0, most=60)
    assert sample == stratified_sample(data, seed=0, most=60)
    assert set(sample) != set(stratified_sample(data, seed=1, most=60))
    places = [data.samples.index(item) for item in sample]
    assert places == sorted(places)


def test_the_order_of_the_manifest_does_not_matter() -> None:
    data = manifest(300, 200, 100)
    shuffled = list(data.samples)
    random.Random(0).shuffle(shuffled)
    other = replace(data, samples=tuple(shuffled))
    assert set(stratified_sample(other, seed=0, most=60)) == set(stratified_sample(data, seed=0, most=60))


def test_images_within_a_class_are_drawn_at_random() -> None:
    sample = stratified_sample(manifest(1000), seed=0, most=100)
    numbers = [int(item.file.split("/")[1].split(".")[0]) for item in sample]
    assert 400 < sum(numbers) / 100 < 600
    assert len({after - before for before, after in pairwise(numbers)}) > 5


def test_evidence_counts_train_and_probes_every_group() -> None:
    data = manifest(40, 20, 3, num_val=9)
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % 3
    noise = torch.randn(30, 6, generator=generator)
    features = {"stem": noise, "layer4": noise + 5 * torch.nn.functional.one_hot(targets, 6)}
    found = evidence_of(data, features, targets)
    size = found.size
    assert (size.num_images, size.num_classes, size.num_probed) == (63, 3, 30)
    assert (size.images_per_class_min, size.images_per_class_median, size.imbalance) == (3, 20, 40 / 3)
    assert list(found.probe) == ["stem", "layer4"]
    assert found.probe["layer4"] == wilson(loo_ridge(features["layer4"], targets), 30)
    assert found.probe["stem"].value < 0.6 < 0.95 < found.probe["layer4"].value
    assert (found.last, found.best) == ("layer4", "layer4")
    assert found.behind.value == 0
    assert found.joint == wilson(loo_ridge(torch.cat(list(features.values()), 1), targets), 30)


def test_a_last_group_that_lies_behind_is_measured_on_the_same_images() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    noise = torch.randn(60, 6, generator=generator)
    good = noise + 5 * torch.nn.functional.one_hot(targets, 6)
    found = evidence_of(manifest(20, 20, 20), {"stem": good, "layer4": noise}, targets)
    assert (found.last, found.best) == ("layer4", "stem")
    assert found.behind.value == pytest.approx(found.probe["stem"].value - found.probe["layer4"].value)
    assert 0 < found.behind.low < found.behind.value < found.behind.high


def test_of_equal_groups_the_later_one_is_the_best() -> None:
    targets = torch.arange(30) % 3
    features = torch.nn.functional.one_hot(targets, 6).float()
    found = evidence_of(manifest(10, 10, 10), {"stem": features, "layer4": features}, targets)
    assert found.best == "layer4"


def test_the_gain_is_what_half_of_the_images_lack() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(200) % 2
    weak = torch.randn(200, 150, generator=generator) + 0.12 * (targets[:, None] * 2 - 1)
    learning = evidence_of(manifest(100, 100), {"a": weak}, targets).size.gain
    assert learning.value > 0
    sure = torch.randn(200, 4, generator=generator) + 9 * (targets[:, None] * 2 - 1)
    assert evidence_of(manifest(100, 100), {"a": sure}, targets).size.gain.value == 0


def test_spread_is_the_ratio_of_the_scatters() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(20_000) % 2
    apart = torch.randn(20_000, 3, generator=generator) + 2.0 * (targets[:, None] * 2 - 1)
    assert spread(apart, targets) == pytest.approx(4, rel=0.05)  # means at +-2, deviation 1
    assert spread(7 * apart + 3, targets) == pytest.approx(spread(apart, targets))
    assert spread(torch.randn(300, 50, generator=generator), torch.arange(300) % 30) < 0.01
    assert spread(apart[:2], targets[:2]) == 0  # one image a class: nothing to compare with


@pytest.mark.parametrize(("count", "width", "num_classes"), [(60, 5, 3), (200, 30, 50), (40, 300, 39)])
def test_spread_is_that_of_a_column_for_every_class(count: int, width: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(count)
    targets = 2 * torch.randint(num_classes, (count,), generator=generator)  # every second class is absent
    features = torch.randn(2 * num_classes, width, generator=generator)[targets]
    features += torch.randn(count, width, generator=generator)
    values = (features.double() - features.double().mean(dim=0)) / features.double().std(dim=0, correction=0)
    labels = torch.nn.functional.one_hot(targets).double()
    labels = labels[:, labels.any(dim=0)]
    means = labels.T @ values / labels.sum(dim=0)[:, None]
    within = (values - labels @ means).square().sum() / (count - len(means))
    between = (labels.sum(dim=0)[:, None] * means.square()).sum() - (len(means) - 1) * within
    assert spread(features, targets) == pytest.approx(float(between / count / within), rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_handful_of_images_is_measured_too(count: int) -> None:
    targets = torch.arange(count) % 2
    found = evidence_of(manifest(3, 2), {"a": torch.randn(count, 3)}, targets)
    assert 0 <= found.probe["a"].low <= found.probe["a"].high <= 1
    assert -1 <= found.size.gain.low <= found.size.gain.high <= 1


def test_altered_copies_leave_spread_and_logme_as_they_are_without_them() -> None:
    generator = torch.Generator().manual_seed(0)
    photos, targets = torch.randn(40, 8, generator=generator), torch.arange(40) % 2
    one = evidence_of(manifest(20, 20), {"layer4": photos}, targets)
    units = [place // 4 for place in range(160)]
    repeated = {"layer4": photos.repeat_interleave(4, dim=0)}
    four = evidence_of(manifest(80, 80), repeated, targets.repeat_interleave(4), units=units)
    assert (four.spread, four.logme) == (one.spread, one.logme)
    assert evidence_of(manifest(80, 80), repeated, targets.repeat_interleave(4)).spread > one.spread
