"""Metrics against cases counted by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from finetune.evaluation.metrics import confusions, measure, top1
from finetune.types import Interval
from finetune.workflow.evaluate import Evaluation
from tests.support import mostly_slow


def logits_of(guesses: list[int], *, num_classes: int, share: float = 0.9) -> Tensor:
    """Return logits whose softmax gives `share` to each guess and the rest to the others alike."""
    rest = (1 - share) / (num_classes - 1)
    rows = [[math.log(share if label == guess else rest) for label in range(num_classes)] for guess in guesses]
    return torch.tensor(rows)


def test_top1_is_the_share_of_right_guesses() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 4, 3]])
    assert top1(logits, torch.tensor([0, 2, 0, 1])) == 0.5
    assert top1(logits, torch.tensor([0, 2, 1, 0])) == 1.0


def test_top5_is_left_out_where_five_guesses_are_most_classes() -> None:
    guesses = [0, 1, 2, 3]
    few = measure(logits_of(guesses, num_classes=9), torch.tensor(guesses))
    many = measure(logits_of(guesses, num_classes=10), torch.tensor(guesses))
    assert list(few) == ["top1", "macro_f1", "ece", "balanced_accuracy", "auroc", "brier", "nll"]
    assert list(many) == [*[*few][:3], "top5", *[*few][3:]]


def test_top5_counts_the_right_class_among_the_five_largest() -> None:
    row = [10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    found = measure(torch.tensor([row] * 4), torch.tensor([0, 4, 5, 6]))
    assert (found["top1"].value, found["top5"].value) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("targets", "guesses", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 0, 1], [0, 0, 1, 1], (0.8 + 2 / 3) / 2),
        ([0, 0, 1, 2], [0, 1, 1, 0], (0.5 + 2 / 3 + 0) / 3),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0.0),
        ([3, 3, 5, 5], [3, 3, 5, 3], (0.8 + 2 / 3) / 2),  # classes that never occur do not count
    ],
)
def test_macro_f1_is_the_mean_over_the_classes_that_occur(
    targets: list[int], guesses: list[int], expected: float
) -> None:
    found = measure(logits_of(guesses, num_classes=6), torch.tensor(targets))
    assert found["macro_f1"].value == pytest.approx(expected)


@pytest.mark.parametrize(("share", "num_right"), [(0.95, 10), (0.95, 0), (0.7, 7), (0.7, 3), (0.55, 10)])
def test_ece_of_one_confidence_is_its_distance_from_the_hit_rate(share: float, num_right: int) -> None:
    targets = torch.tensor([0] * num_right + [1] * (10 - num_right))
    found = measure(logits_of([0] * 10, num_classes=3, share=share), targets)
    assert found["ece"].value == pytest.approx(abs(share - num_right / 10), abs=1e-5)


def test_ece_weighs_its_bins_by_their_images() -> None:
    sure, unsure = logits_of([0] * 6, num_classes=2, share=0.97), logits_of([0] * 4, num_classes=2, share=0.62)
    targets = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0, 1])
    found = measure(torch.cat([sure, unsure]), targets)
    assert found["ece"].value == pytest.approx(0.6 * abs(0.97 - 0.5) + 0.4 * abs(0.62 - 0.75), abs=1e-5)


def test_intervals_hold_their_values_and_shrink_with_more_images() -> None:
    def width(count: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        logits, targets = torch.randn(count, 7, generator=generator), torch.arange(count) % 7
        found = measure(logits + 2 * torch.nn.functional.one_hot(targets, 7), targets)
        most = {"nll": math.inf, "brier": 2}
        assert all(0 <= v.low <= v.value <= v.high <= most.get(name, 1) for name, v in found.items())
        return {name: item.high - item.low for name, item in found.items()}

    few, many = width(30), width(480)
    assert all(many[name] < 0.6 * few[name] for name in few)


def test_metrics_are_the_same_twice() -> None:
    logits, targets = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 6
    torch.manual_seed(1)
    first = measure(logits, targets)
    torch.manual_seed(2)
    assert measure(logits, targets) == first


def test_one_image_is_measured() -> None:
    found = measure(logits_of([1], num_classes=3), torch.tensor([1]))
    assert (found["top1"].value, found["macro_f1"].value) == (1.0, 1.0)
    assert found["ece"].value == pytest.approx(0.1, abs=1e-5)
    assert found["top1"].low < 0.3


def test_confusion_counts_true_classes_in_rows() -> None:
    pairs = confusions(logits_of([0, 1, 1, 2, 2, 1], num_classes=4), torch.tensor([0, 0, 1, 2, 0, 1]))
    assert pairs == ((0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 1, 2), (2, 2, 1))
    found = Evaluation("val", 6, ("a", "b", "c", "d"), {}, pairs, {}).confusion
    assert found == [[1, 1, 1, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def resamples(count: int, units: list[int] | None) -> list[np.ndarray]:
    """The places of the images in each of 300 bootstrap samples of whole units, written out."""
    names = sorted(set(units if units is not None else range(count)))
    members = [[place for place in range(count) if (units[place] if units else place) == name] for name in names]
    drawn = np.random.default_rng(0).integers(0, len(names), (300, len(names)))
    return [np.array([place for number in row for place in members[number]]) for row in drawn.tolist()]


def plain_macro_f1(logits: Tensor, targets: Tensor, samples: list[np.ndarray]) -> Interval:
    num_classes = logits.shape[1]

    def of(chosen: np.ndarray) -> float:
        guesses, right = logits[chosen].argmax(dim=1), targets[chosen]
        return float(multiclass_f1_score(guesses, right, num_classes=num_classes, average="macro"))

    value, (low, high) = of(np.arange(len(targets))), np.quantile([of(chosen) for chosen in samples], [0.025, 0.975])
    return Interval(value, min(low, value), max(high, value))


def plain_ece(logits: Tensor, targets: Tensor, samples: list[np.ndarray]) -> Interval:
    confidence, guesses = logits.softmax(dim=1).max(dim=1)
    edges = torch.linspace(0, 1, 16)

    def gaps(chosen: np.ndarray) -> np.ndarray:
        found = []
        for low, high in pairwise(edges):
            is_inside = (confidence[chosen] >= low) & ((confidence[chosen] < high) | (high == 1))
            apart = (guesses[chosen] == targets[chosen]).double() - confidence[chosen].double()
            found.append(float(apart[is_inside].sum()) / len(chosen))
        return np.array(found)

    own = gaps(np.arange(len(targets)))
    reach = np.quantile([np.abs(gaps(chosen) - own).sum() for chosen in samples], 0.99)
    value = np.abs(own).sum()
    library = multiclass_calibration_error(logits.softmax(dim=1), targets, num_classes=logits.shape[1], n_bins=15)
    assert value == pytest.approx(float(library), abs=1e-5)
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


UNITS = ["singly", "in groups", "in groups of any size", "in one group"]
SIZES = [(1, 3, 3, False), (37, 4, 4, False), (60, 5, 5, True), (200, 30, 8, False), (120, 400, 400, False)]
RESAMPLED = [(*size, units) for size in SIZES for units in UNITS]


@pytest.mark.parametrize(
    ("count", "num_classes", "occurring", "rounded", "grouped"), mostly_slow(RESAMPLED, *RESAMPLED[:16], RESAMPLED[18])
)
def test_metrics_are_those_of_every_resample_measured_by_itself(
    count: int, num_classes: int, occurring: int, rounded: bool, grouped: str
) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = 2 * torch.randn(count, num_classes, generator=generator)
    targets = torch.randint(occurring, (count,), generator=generator)
    logits[torch.arange(count), targets] += 2.0
    if rounded:  # equal logits, and confidences that lie on the edges of bins
        logits = logits.round().clamp(0, 1) * 40
        assert (logits.topk(2, dim=1).values.diff(dim=1) == 0).any()
    units = {
        "singly": None,
        "in groups": [place // 3 for place in range(count)],
        "in groups of any size": torch.randint(1 + count // 4, (count,), generator=generator).tolist(),
        "in one group": [7] * count,
    }[grouped]
    found, samples = measure(logits, targets, units=units), resamples(count, units)
    for name, wanted in (
        ("macro_f1", plain_macro_f1(logits, targets, samples)),
        ("ece", plain_ece(logits, targets, samples)),
    ):
        got = found[name]
        assert (got.value, got.low, got.high) == pytest.approx((wanted.value, wanted.low, wanted.high), abs=2e-6)


def pairs_in_order(shares: Tensor, is_of: Tensor) -> float:
    """The share of all pairs of an image of a class and another in which the first is surer; equal ones half."""
    gaps = shares[is_of][:, None] - shares[~is_of][None]
    return float(((gaps > 1e-9).double() + 0.5 * (gaps.abs() <= 1e-9)).mean())


@pytest.mark.filterwarnings("ignore:No positive samples")
@pytest.mark.parametrize(("count", "num_classes"), [(60, 2), (61, 3), (90, 12)])
@pytest.mark.parametrize("rounded", [False, True], ids=["apart", "many equal"])
def test_measures_of_probabilities_are_those_of_the_libraries(count: int, num_classes: int, rounded: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    logits, targets = torch.randn(count, num_classes, generator=generator), torch.arange(count) ** 2 % num_classes
    logits[torch.arange(count), targets] += 1
    logits = logits.round() if rounded else logits
    shares, found = logits.double().softmax(dim=1), measure(logits, targets)
    present = targets.unique()
    aurocs = [pairs_in_order(shares[:, label], targets == label) for label in present.tolist()]
    wanted = aurocs[-1] if num_classes == 2 else np.mean(aurocs)
    if not rounded:  # the library tells apart what only rounding does
        library = multiclass_auroc(shares, targets, num_classes=num_classes, average=None)[present]
        assert library.tolist() == pytest.approx(aurocs, abs=1e-6)
    brier = (shares - torch.nn.functional.one_hot(targets, num_classes)).square().sum(dim=1).mean()
    hits = logits.argmax(dim=1) == targets
    recall = torch.stack([hits[targets == label].double().mean() for label in present]).mean()
    assert found["auroc"].value == pytest.approx(float(wanted), abs=1e-6)
    assert found["brier"].value == pytest.approx(float(brier) / (2 if num_classes == 2 else 1))
    assert found["nll"].value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-5)
    assert found["balanced_accuracy"].value == pytest.approx(float(recall))


def test_auroc_is_left_out_where_all_images_have_one_class() -> None:
    found = measure(logits_of([0, 0, 1], num_classes=3), torch.tensor([0, 0, 0]))
    assert "auroc" not in found and found["balanced_accuracy"].value == pytest.approx(2 / 3)


def test_few_images_of_a_class_leave_wide_what_is_averaged_over_the_classes() -> None:
    def widths(of_second: int) -> tuple[float, float]:
        guesses = [0] * 200 + [1] * of_second
        found = measure(logits_of(guesses, num_classes=2), torch.tensor(guesses))
        assert found["auroc"].value == found["balanced_accuracy"].value == 1.0
        return tuple(found[name].high - found[name].low for name in ("auroc", "balanced_accuracy"))

    assert all(few > 0.2 > 0.05 > many > 0 for few, many in zip(widths(3), widths(200), strict=True))


def test_copies_say_no_more_than_what_they_copy() -> None:
    logits, targets = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    logits[torch.arange(60), targets] += 1
    once = measure(logits, targets)
    twice = measure(logits.repeat(2, 1), targets.repeat(2), units=[*range(60)] * 2)
    for name in ("auroc", "balanced_accuracy"):
        ends = [(one.value, one.low, one.high) for one in (once[name], twice[name])]
        assert ends[1] == pytest.approx(ends[0], abs=0.01)


@pytest.mark.slow
def test_the_interval_of_auroc_holds_the_truth_about_as_often_as_it_says() -> None:
    generator, held = torch.Generator().manual_seed(0), 0
    targets = torch.arange(120) % 3 // 2  # a third of the second class
    for _ in range(200):
        gap = torch.randn(120, generator=generator) + 1.5 * targets
        found = measure(torch.stack([torch.zeros(120), gap], dim=1), targets)["auroc"]
        held += found.low <= 0.85558 <= found.high  # the normal distribution function at 1.5 / sqrt(2)
    assert 0.91 * 200 <= held <= 0.99 * 200
