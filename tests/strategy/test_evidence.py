"""The sample that is measured keeps the shares of the classes; the evidence is what the probes say."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from finetune.evaluation.intervals import wilson
from finetune.features.probe import loo_ridge
from finetune.strategy.evidence import measure, stratified_sample
from finetune.types import Manifest, Sample, Target


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
    found = measure(data, features, targets)
    assert (found.num_images, found.num_classes, found.num_probed) == (63, 3, 30)
    assert (found.images_per_class_min, found.images_per_class_median) == (3, 20)
    assert list(found.probe) == ["stem", "layer4"]
    assert found.probe["layer4"] == wilson(loo_ridge(features["layer4"], targets, num_classes=3), 30)
    assert found.probe["stem"].value < 0.6 < 0.95 < found.probe["layer4"].value
