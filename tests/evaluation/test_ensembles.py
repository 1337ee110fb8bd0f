"""Averages of outputs, who takes part by val, and what it brings, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.evaluation.ensembles import Mixture, averaged, chosen_greedily, score_gain
from finetune.evaluation.intervals import paired
from finetune.evaluation.labels import mean_average_precision
from finetune.evaluation.metrics import top1

COUNTS = (1, 3, 2)


def outputs(num_classes: int = 4, *, count: int = 3, images: int = 9, scale: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(images, num_classes, generator=generator) for _ in range(count)]


def weighted(parts: list[Tensor]) -> Tensor:
    return sum(count * part for count, part in zip(COUNTS, parts, strict=True)) / sum(COUNTS)  # type: ignore[return-value]


def test_softmax_of_the_average_is_the_mean_of_the_probabilities() -> None:
    rows = outputs()
    found = averaged(rows, COUNTS, task="classify", average="probabilities").softmax(dim=1)
    assert torch.allclose(found, weighted([part.softmax(dim=1) for part in rows]), atol=1e-6)


def test_sigmoid_of_the_average_is_the_mean_of_the_probabilities() -> None:
    rows = outputs()
    found = averaged(rows, COUNTS, task="multilabel", average="probabilities").sigmoid()
    assert torch.allclose(found, weighted([part.sigmoid() for part in rows]), atol=1e-6)


@pytest.mark.parametrize(("task", "average"), [("classify", "logits"), ("multilabel", "logits"), ("regress", "logits"),
                                               ("regress", "probabilities")])  # fmt: skip
def test_logits_and_numbers_are_their_mean(task: str, average: str) -> None:
    rows = outputs()
    assert torch.allclose(averaged(rows, COUNTS, task=task, average=average), weighted(rows))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_members_that_are_very_sure_leave_finite_numbers(task: str) -> None:
    found = averaged(outputs(scale=1e4), COUNTS, task=task, average="probabilities")  # type: ignore[arg-type]
    assert torch.isfinite(found).all()


def hits(pattern: str) -> Tensor:
    """Return logits that are right (class 0) where the pattern says +, sure where it says +! or -!."""
    signs = {"+": 1.0, "-": -1.0, "P": 4.0, "M": -4.0}
    return torch.tensor([[signs[sign], 0.0] for sign in pattern])


def by_top1(rows: Tensor) -> tuple[float, float]:
    targets = torch.zeros(len(rows), dtype=torch.int64)
    return top1(rows, targets), float(torch.nn.functional.cross_entropy(rows, targets))


def test_greedy_takes_who_makes_up_for_the_others_mistakes_and_leaves_the_rest() -> None:
    candidates = [hits("PPP-"), hits("---P"), hits("MMMM")]
    found = chosen_greedily(candidates, by_top1, task="classify", average="logits", is_once=True)
    assert found.counts == (1, 1, 0)
    assert found.score == 1.0


def test_a_candidate_is_weighted_by_being_taken_again_unless_once() -> None:
    candidates = [torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), torch.tensor([[-3.0, 0.0], [5.0, 0.0]])]
    again = chosen_greedily(candidates, by_top1, task="classify", average="logits")
    assert again.score == 1.0 and max(again.counts) > 1
    once = chosen_greedily(candidates, by_top1, task="classify", average="logits", is_once=True)
    assert max(once.counts) == 1 and once.score < 1.0


def test_greedy_is_never_worse_on_val_than_the_best_alone() -> None:
    rows = outputs(images=40, count=5)
    targets = torch.arange(40) % 4

    def judge(found: Tensor) -> tuple[float, float]:
        return top1(found, targets), float(torch.nn.functional.cross_entropy(found, targets))

    found = chosen_greedily(rows, judge, task="classify", average="probabilities")
    assert isinstance(found, Mixture)
    assert (found.score, -found.loss) >= max((score, -loss) for score, loss in map(judge, rows))


def test_the_gain_in_top1_is_paired_and_that_in_map_has_its_value_inside_the_interval() -> None:
    ours, theirs = outputs(images=60, count=2)
    targets = torch.arange(60) % 4
    right = [(rows.argmax(dim=1) == targets).numpy() for rows in (ours, theirs)]
    assert score_gain("classify", ours, theirs, targets) == paired(*right)
    labels = torch.nn.functional.one_hot(targets, 4).float()
    found = score_gain("multilabel", ours, theirs, labels)
    expected = mean_average_precision(ours, labels) - mean_average_precision(theirs, labels)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high and found.low < found.high
    assert score_gain("multilabel", ours, ours, labels).high == 0.0


def test_the_gain_in_r2_is_that_of_the_numbers() -> None:
    right = torch.arange(30.0)[:, None]
    found = score_gain("regress", right, right + 5, right)
    assert found.value == pytest.approx(25 / float(((right - right.mean()) ** 2).mean()))
    assert found.low > 0
