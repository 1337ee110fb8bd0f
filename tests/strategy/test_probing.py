"""Evidence of sets of classes and of numbers: what tells is told from what does not, and who is alike counts once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune.strategy.evidence import evidence_of, stratified_sample
from finetune.strategy.matrix import decide, similarity_score
from finetune.tasks import AnyTarget, Labels, Quantity
from finetune.types import Manifest, Sample

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(120, 8, generator=GENERATOR)
SETS = (torch.rand(120, 3, generator=GENERATOR) < 0.4).float()
NUMBERS = torch.randn(120, 1, generator=GENERATOR) * 3 + 10
TELLING = {"multilabel": torch.cat([SETS, NOISE], dim=1), "regress": torch.cat([NUMBERS, NOISE], dim=1)}


def manifest(task: str) -> Manifest:
    targets: list[AnyTarget] = [Quantity(float(number)) for number in NUMBERS[:, 0]]
    if task == "multilabel":
        targets = [Labels(tuple(row.nonzero()[:, 0].tolist()), 3) for row in SETS]
    samples = tuple(Sample(f"{place:03}.jpg", target, "train") for place, target in enumerate(targets))
    names = ("a", "b", "c") if task == "multilabel" else ("length",)
    return Manifest("root", names, samples, task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "measure"), [("multilabel", "mAP"), ("regress", "r2")])
def test_the_group_that_tells_is_the_best_and_noise_is_near_chance(task: str, measure: str) -> None:
    targets = SETS if task == "multilabel" else NUMBERS
    found = evidence_of(manifest(task), {"stem": TELLING[task], "layer4": NOISE}, targets)
    assert found.measure == measure
    assert found.best == "stem" and found.probe["stem"].value > 0.95
    assert found.probe["layer4"].value < found.of_a_guess + 0.2
    assert found.behind.low > 0.3
    assert found.spread == 0 and found.confidence is None
    assert all(one.low <= one.value <= one.high for one in (*found.probe.values(), found.joint, found.size.gain))
    again = evidence_of(manifest(task), {"stem": TELLING[task], "layer4": NOISE}, targets)
    assert again == found


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_the_matrix_decides_and_says_by_what(task: str) -> None:
    targets = SETS if task == "multilabel" else NUMBERS
    found = evidence_of(manifest(task), {"stem": NOISE, "layer4": TELLING[task]}, targets)
    verdict = decide(found)
    assert f"a linear model on the last stage has {found.measure} " in verdict.reason
    assert similarity_score(found).value > 0  # no norm and no classifier: by how well the last group tells
    far = replace(found, probe={"layer4": replace(found.probe["layer4"], value=found.of_a_guess + 0.1)})
    assert similarity_score(far).value < 0
    if task == "regress":
        assert "120 images with a number (12 in a tenth of them)" in verdict.reason


def test_copies_make_no_set_better_told() -> None:
    units = [place // 4 for place in range(120)]
    wide = torch.randn(30, 256, generator=torch.Generator().manual_seed(1))
    features = wide[units] + 0.05 * torch.randn(120, 256, generator=torch.Generator().manual_seed(2))
    targets = SETS[[4 * unit for unit in units]]
    alone = evidence_of(manifest("multilabel"), {"layer4": features}, targets)
    of_units = evidence_of(manifest("multilabel"), {"layer4": features}, targets, units=units)
    assert alone.probe["layer4"].value > 0.9  # each is told by its copies
    assert of_units.probe["layer4"].value < 0.75


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_a_sample_keeps_the_shares(task: str) -> None:
    whole = manifest(task)
    some = stratified_sample(whole, seed=0, most=40)
    assert len(some) == 40
    if task == "multilabel":
        counts = replace(whole, samples=some).counts()
        assert all(abs(counts[name] - count / 3) <= 4 for name, count in whole.counts().items())
    else:
        values = sorted(sample.target.value for sample in whole.samples)
        middle = values[60]
        assert abs(sum(sample.target.value < middle for sample in some) - 20) <= 2


def test_very_few_images_tell_nothing() -> None:
    few = replace(manifest("regress"), samples=manifest("regress").samples[:3])
    found = evidence_of(few, {"layer4": NOISE[:3]}, NUMBERS[:3])
    assert found.probe["layer4"].value == 0
    assert "too few to see how well they can be separated" in decide(found).reason
