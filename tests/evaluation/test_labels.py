"""Average precision and F1 of several classes against other implementations, and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from finetune.evaluation.labels import RankedImages, best_thresholds, mean_average_precision
from finetune.evaluation.metrics import measure_task


def drawn(seed: int = 0, *, count: int = 40, classes: int = 5, digits: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, classes)) < 0.3).astype(np.float32)
    logits = np.round(rng.normal(size=(count, classes)) + targets, digits)
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(targets)


@pytest.mark.parametrize("digits", [6, 0], ids=["no ties", "many ties"])
def test_map_and_f1_are_those_of_another_library(digits: int) -> None:
    logits, targets = drawn(digits=digits)
    found = measure_task("multilabel", logits, targets, thresholds=[0.5] * 5)
    whole = targets.long()
    assert found["mAP"].value == pytest.approx(float(multilabel_average_precision(logits.sigmoid(), whole, 5)))
    for average in ("macro", "micro"):
        expected = multilabel_f1_score((logits >= 0).float(), whole, 5, average=average)
        assert found[f"{average}_f1"].value == pytest.approx(float(expected))
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_an_image_that_counts_twice_is_an_image_that_is_there_twice() -> None:
    logits, targets = drawn()
    weight = np.random.default_rng(1).integers(0, 3, len(targets))
    twice = torch.from_numpy(np.repeat(np.arange(len(targets)), weight))
    weighed = RankedImages.of(logits.double().numpy(), targets.numpy() > 0).mean(weight)
    assert weighed == pytest.approx(mean_average_precision(logits[twice], targets[twice]))


def test_a_class_that_does_not_occur_does_not_count() -> None:
    logits, targets = drawn()
    without = torch.cat([targets, torch.zeros(len(targets), 1)], dim=1)
    more = torch.cat([logits, logits[:, :1]], dim=1)
    assert mean_average_precision(more, without) == pytest.approx(mean_average_precision(logits, targets))


def test_copies_count_as_one_image_in_the_intervals() -> None:
    logits, targets = drawn(count=60)
    logits, targets = logits.repeat(4, 1), targets.repeat(4, 1)
    alone, of_units = (
        measure_task("multilabel", logits, targets, thresholds=[0.5] * 5, units=units)["mAP"]
        for units in (None, list(range(60)) * 4)
    )
    assert of_units.value == alone.value
    assert of_units.high - of_units.low > 1.5 * (alone.high - alone.low)


def test_no_threshold_has_a_higher_f1_than_the_chosen_one() -> None:
    logits, targets = drawn()
    chosen = measure_task("multilabel", logits, targets, thresholds=best_thresholds(logits, targets))["macro_f1"].value
    others = np.linspace(0.01, 0.99, 60)
    assert chosen >= max(
        measure_task("multilabel", logits, targets, thresholds=[t] * 5)["macro_f1"].value for t in others
    )
    assert chosen < 1


def test_a_threshold_lies_midway_and_nearest_to_one_half() -> None:
    logits = torch.tensor([0.9, 0.7, 0.2, 0.1]).logit()[:, None].float()
    assert best_thresholds(logits, torch.tensor([[1.0], [1], [0], [0]])) == pytest.approx((0.45,))
    assert best_thresholds(logits, torch.zeros(4, 1)) == (0.5,)
    assert best_thresholds(logits, torch.ones(4, 1)) == pytest.approx((0.05,))
