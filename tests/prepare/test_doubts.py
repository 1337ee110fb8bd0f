"""Doubted labels of sets of classes and of numbers: what was changed is found, and little else is."""

from __future__ import annotations

import pytest
import torch

from finetune.prepare.doubts import doubts_of
from finetune.tasks import AnyTarget, Labels, Quantity
from finetune.types import Manifest, Sample

GENERATOR = torch.Generator().manual_seed(0)
SETS = (torch.rand(400, 3, generator=GENERATOR) < 0.4).float()
NUMBERS = 40 + 10 * torch.randn(400, 1, generator=GENERATOR)
NOISE = torch.randn(400, 96, generator=GENERATOR)
TELLING = 2 * SETS @ torch.randn(3, 96, generator=GENERATOR) + NOISE  # as wide as what a backbone yields


def manifest(task: str, targets: torch.Tensor) -> Manifest:
    shown: list[AnyTarget] = [Quantity(float(number)) for number in targets[:, 0]]
    if task == "multilabel":
        shown = [Labels(tuple(row.nonzero()[:, 0].tolist()), 3) for row in targets]
    samples = tuple(Sample(f"{place:03}.jpg", target, "train") for place, target in enumerate(shown))
    return Manifest("root", ("a", "b", "c") if task == "multilabel" else ("age",), samples, task=task)  # type: ignore[arg-type]


def files(doubts) -> set[str]:
    return {case.files[0].file for case in doubts.cases}


def test_classes_that_were_taken_away_or_added_are_found_and_named() -> None:
    planted = [5, 40, 90, 150, 200, 300]
    wrong = SETS.clone()
    for place in planted:
        wrong[place, place % 3] = 1 - wrong[place, place % 3]
    doubts = doubts_of(manifest("multilabel", wrong), TELLING, wrong, list(range(400)), seed=0)
    hits = files(doubts) & {f"{place:03}.jpg" for place in planted}
    assert len(hits) >= 4 and len(doubts.cases) <= len(hits) + 2
    for case in doubts.cases:
        place = int(case.files[0].file[:3])
        if place in planted:
            word = "with" if SETS[place, place % 3] else "without"
            assert f"rather {word} {'abc'[place % 3]}" in case.note
    assert doubts.score.value > 0.9 and bool(doubts.is_judged.all())


def test_labels_that_are_right_are_hardly_doubted() -> None:
    assert len(doubts_of(manifest("multilabel", SETS), TELLING, SETS, list(range(400)), seed=0).cases) <= 2
    telling = torch.cat([NUMBERS, NOISE], dim=1)
    assert len(doubts_of(manifest("regress", NUMBERS), telling, NUMBERS, list(range(400)), seed=0).cases) <= 2


def test_a_number_that_is_far_off_is_found_first() -> None:
    wrong = NUMBERS.clone()
    wrong[7] = 400.0
    telling = torch.cat([NUMBERS + 0.1 * NOISE[:, :1], NOISE], dim=1)
    doubts = doubts_of(manifest("regress", wrong), telling, wrong, list(range(400)), seed=0)
    assert doubts.cases[0].files[0].file == "007.jpg"
    assert doubts.cases[0].facts["suggested"] == pytest.approx(float(NUMBERS[7]), abs=30)


def test_too_few_images_are_not_judged() -> None:
    few = manifest("regress", NUMBERS[:8])
    doubts = doubts_of(few, NOISE[:8], NUMBERS[:8], list(range(8)), seed=0)
    assert doubts.cases == () and not doubts.is_judged.any()
