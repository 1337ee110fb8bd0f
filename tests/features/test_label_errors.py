"""Confident learning: its rule by hand, its folds, and what it finds of labels that were turned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.features.label_errors import Suspect, held_out_probabilities, is_judged, suspects, unit_folds
from finetune.features.probe import held_out_logits


def blobs(count: int, *, classes: int = 4, width: int = 32, apart: float = 4.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    centres = rng.normal(size=(classes, width)) * apart / np.sqrt(width)
    features = centres[targets] * 2 + rng.normal(size=(count, width))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(targets)


def test_the_rule_by_hand() -> None:
    targets = torch.tensor([0] * 10 + [1] * 10)
    likely = torch.tensor([[0.95, 0.05]] * 10 + [[0.2, 0.8]] * 10)
    likely[3] = torch.tensor([0.02, 0.98])  # labelled 0; class 1's threshold is 0.67
    likely[12] = torch.tensor([0.91, 0.09])  # labelled 1; class 0's threshold is 0.79
    likely[5] = torch.tensor([0.3, 0.7])  # another class is likelier, but its label is not that unlikely
    likely[15] = torch.tensor([0.81, 0.19])  # it is, but the label still has more than a quarter of 0.67
    found = suspects(likely, targets, list(range(20)))
    assert [(one.place, one.suggested) for one in found] == [(3, 1), (12, 0)]
    assert found[0] == Suspect(3, 1, pytest.approx(0.02), pytest.approx(0.98))


def test_a_class_too_small_is_not_judged() -> None:
    targets = torch.tensor([0] * 10 + [1] * 9)
    wrong = torch.tensor([[0.99, 0.01]] * 19)
    wrong[0] = torch.tensor([0.01, 0.99])
    assert is_judged(targets, list(range(19))).tolist() == [True] * 10 + [False] * 9
    assert [one.place for one in suspects(wrong, targets, list(range(19)))] == [0]
    assert is_judged(targets, [0] * 10 + list(range(1, 10))).tolist() == [False] * 19  # ten copies are one


def test_copies_are_in_one_fold_and_every_image_in_one() -> None:
    rng = np.random.default_rng(0)
    units = rng.integers(0, 40, 100).tolist()
    parts = unit_folds(torch.arange(100) % 3, units, seed=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    sides = [{units[place] for place in part.tolist()} for part in parts]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert all(torch.equal(a, b) for a, b in zip(parts, unit_folds(torch.arange(100) % 3, units, seed=0), strict=True))


def test_a_copy_does_not_speak_for_its_copy() -> None:
    features, targets = blobs(120)
    targets[0] = targets[1] = 2  # the same wrong label, on an image and its copy
    features[1] = features[0]
    units = [0, 0, *range(2, 120)]
    places = {
        one.place
        for one in suspects(held_out_probabilities(features, targets, units, num_classes=4, seed=0), targets, units)
    }
    assert {0, 1} <= places


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_turned_labels_are_found_with_few_others(share: float, seed: int) -> None:
    features, targets = blobs(400, seed=seed)
    turned = np.random.default_rng(seed).permutation(400)[: int(400 * share)]
    targets[turned] = (targets[turned] + 1) % 4
    units = list(range(400))
    found = suspects(held_out_probabilities(features, targets, units, num_classes=4, seed=0), targets, units)
    hits = {one.place for one in found} & set(turned.tolist())
    assert len(hits) >= 0.65 * len(turned)
    assert len(found) - len(hits) <= 2
    assert [one.confidence for one in found] == sorted(one.confidence for one in found)


def test_held_out_probabilities_are_about_as_sure_as_they_are_right() -> None:
    features, targets = blobs(600, apart=1.0)
    likely = held_out_probabilities(features, targets, list(range(600)), num_classes=4, seed=0)
    sure, right = likely.max(dim=1).values.mean(), (likely.argmax(dim=1) == targets).float().mean()
    assert 0.4 < right < 0.9
    assert float(sure) == pytest.approx(float(right), abs=0.06)


def test_held_out_logits_are_those_of_a_refit_without_the_part() -> None:
    features, targets = blobs(60, apart=1.0)
    parts = [torch.arange(0, 30), torch.arange(30, 60)]
    found = held_out_logits(features, targets, num_classes=4, parts=parts)
    changed = targets.clone()
    changed[:30] = (changed[:30] + 1) % 4  # their own labels must not matter to them, at one strength
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("finetune.features.probe.STRENGTHS", (100.0,))
        first = held_out_logits(features, targets, num_classes=4, parts=parts)
        second = held_out_logits(features, changed, num_classes=4, parts=parts)
    assert torch.allclose(first[:30], second[:30], atol=1e-4)
    assert not torch.allclose(first[30:], second[30:], atol=1e-2)
    loss = torch.nn.functional.cross_entropy
    assert loss(found, targets) <= loss(first, targets) + 1e-4
