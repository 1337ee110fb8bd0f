"""Of epochs that val cannot tell apart the last is delivered; an earlier one where it was better beyond chance."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from finetune.train import delivery
from finetune.train.delivery import TOLD_APART, best, delivered
from finetune.types import EpochLine


def line(epoch: int, top1: float, loss: float) -> EpochLine:
    return EpochLine("head", epoch, 0.1, train_loss=1.0, train_top1=0.5, val_loss=loss, val_top1=top1)


def history(*right: int, num_val: int) -> list[EpochLine]:
    return [line(n, hits / num_val, 1 / n) for n, hits in enumerate(right, 1)]


@pytest.mark.parametrize(
    ("right", "num_val", "expected"),
    [
        ((4, 3, 1), 4, 3),  # four images tell nothing apart
        ((50, 60, 56), 100, 3),
        ((50, 60, 55), 100, 2),  # five images fewer: p = 1/32
        ((60, 55, 57), 100, 3),
        ((60, 50, 40), 100, 1),
        ((60, 56, 52, 48), 100, 2),  # each is held against the best, not against the one before
        ((900, 930, 926, 920), 1000, 3),
        ((0, 0), 3, 2),
        ((7,), 9, 1),
        ((), 9, 0),
    ],
)
def test_the_last_epoch_that_is_not_worse_is_delivered(right: tuple[int, ...], num_val: int, expected: int) -> None:
    assert delivered(history(*right, num_val=num_val), num_val) == expected


def test_five_images_are_what_a_sign_test_needs() -> None:
    assert 0.5**TOLD_APART < 0.05 < 0.5 ** (TOLD_APART - 1)


def test_the_best_is_that_with_most_right_then_with_the_least_loss() -> None:
    assert best(history(1, 3, 3, 2, num_val=4)) == 3
    assert best([line(n, 0.5, loss) for n, loss in ((1, 2.0), (2, 1.0), (3, 1.0))]) == 2


@pytest.mark.parametrize(
    ("scores", "losses", "by", "gain", "expected"),
    [
        ([0.5], [1.0], "score", 0.0, True), ([0.5, 0.6], [1.0, 2.0], "score", 0.0, True),
        ([0.5, 0.5], [1.0, 0.9], "score", 0.0, True), ([0.5, 0.5], [1.0, 1.1], "score", 0.0, False),
        ([0.5, 0.55], [1.0, 0.9], "score", 0.1, False), ([0.5, 0.65], [1.0, 2.0], "score", 0.1, True),
        ([0.5, 0.4], [1.0, 0.9], "loss", 0.0, True), ([0.5, 0.9], [1.0, 0.95], "loss", 0.1, False),
    ],
)  # fmt: skip
def test_better_is_by_what_is_asked_for(
    scores: list[float], losses: list[float], by: str, gain: float, expected: bool
) -> None:
    history = [
        SimpleNamespace(epoch=number, score=score, val_loss=loss)
        for number, (score, loss) in enumerate(zip(scores, losses, strict=True), 1)
    ]
    assert delivery.is_better(history, by=by, gain=gain) is expected
