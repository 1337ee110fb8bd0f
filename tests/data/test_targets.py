"""Targets as arrays, as text, and as the classes by which images are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.targets import known_target, strata, target_array, target_of
from finetune.tasks import Labels, Quantity, Target
from finetune.types import Manifest, Sample


def samples(*targets: object) -> list[Sample]:
    return [Sample(f"{place}.jpg", target) for place, target in enumerate(targets)]  # type: ignore[arg-type]


def test_targets_are_the_arrays_that_losses_take() -> None:
    assert target_array(samples(Target(2), Target(0))).tolist() == [2, 0]
    sets = target_array(samples(Labels((0, 2), 3), Labels((), 3)))
    assert sets.tolist() == [[1, 0, 1], [0, 0, 0]] and sets.dtype == np.float32
    assert target_array(samples(Quantity(1.5), Quantity(-2))).tolist() == [[1.5], [-2]]


@pytest.mark.parametrize("target", [Target(1), Labels((0, 1), 2), Labels((), 2), Quantity(0.1 + 0.2)])
def test_a_target_is_its_text(target: Target | Labels | Quantity) -> None:
    task = {Target: "classify", Labels: "multilabel", Quantity: "regress"}[type(target)]
    manifest = Manifest("root", ("a", "b"), (), task=task)  # type: ignore[arg-type]
    index = {"a": 0, "b": 1}
    assert target_of(manifest.task, manifest.label(target), index) == target
    assert known_target(manifest.task, "strange", index) is None


def test_an_image_counts_for_its_rarest_class() -> None:
    sets = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=np.float32)
    assert strata(sets).tolist() == [1, 0, 2, 3]


def test_equal_numbers_are_in_one_tenth() -> None:
    found = strata(np.array([5.0] * 30 + list(range(100, 200)), dtype=np.float32)[:, None])
    assert len(set(found[:30].tolist())) == 1 and len(set(found.tolist())) >= 8
