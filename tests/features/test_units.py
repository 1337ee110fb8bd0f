"""Copies and members of one group never judge each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from finetune.evaluation.intervals import paired, share
from finetune.evaluation.metrics import measure
from finetune.features.probe import fit_probe
from finetune.features.ridge import loo_guesses
from finetune.features.scores import knn_top1
from tests.support import loo_ridge


def altered_copies() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randn(60, 256, generator=generator)
    features = photos.repeat_interleave(4, dim=0) + 0.05 * torch.randn(240, 256, generator=generator)
    targets = torch.randint(0, 2, (60,), generator=generator).repeat_interleave(4)
    return features, targets, [place // 4 for place in range(240)]


def test_labels_at_random_of_altered_copies_are_told_apart_by_chance_only() -> None:
    features, targets, units = altered_copies()
    assert loo_ridge(features, targets) > 0.9  # what the copies give away
    assert loo_ridge(features, targets, units=units) < 0.7
    assert knn_top1(features, targets, units=units) < 0.7
    assert fit_probe(features, targets, num_classes=2, units=units).top1 < 0.7


def test_units_of_one_image_change_nothing() -> None:
    features, targets, _ = altered_copies()
    singles = list(range(240))
    plain = loo_guesses(features, targets)
    assert torch.equal(plain, loo_guesses(features, targets, units=singles))


def test_a_data_set_doubled_by_copies_gives_the_same_weights() -> None:
    features, targets, _ = altered_copies()
    features, targets = features[::4], targets[::4]
    one = fit_probe(features, targets, num_classes=2)
    twice = fit_probe(features.repeat(2, 1), targets.repeat(2), num_classes=2, units=[*range(60), *range(60)])
    assert twice.strength == one.strength
    assert torch.allclose(twice.weight, one.weight, atol=1e-3)


def test_copies_leave_an_interval_about_as_wide_as_it_was() -> None:
    hits = np.arange(60) % 3 > 0
    units = [place // 4 for place in range(240)]
    one, four = share(hits), share(hits.repeat(4), units)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.05)
    same = paired(hits.repeat(4), ~hits.repeat(4), units)
    assert same.high - same.low == pytest.approx((lambda x: x.high - x.low)(paired(hits, ~hits)), rel=0.05)


def test_metrics_are_those_of_torchmetrics_and_ece_holds_zero_of_the_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 7, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    found = measure(logits, targets)
    macro = multiclass_f1_score(logits.argmax(dim=1), targets, num_classes=7, average="macro")
    ece = multiclass_calibration_error(logits.softmax(dim=1), targets, num_classes=7, n_bins=15)
    assert found["macro_f1"].value == pytest.approx(float(macro), abs=1e-6)
    assert found["ece"].value == pytest.approx(float(ece), abs=1e-5)
    assert found["ece"].low == 0
