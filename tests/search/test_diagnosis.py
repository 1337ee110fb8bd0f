"""What curves say, on curves that are drawn for it."""

from __future__ import annotations

import math

import pytest

from finetune.search.diagnosis import diagnosed
from finetune.types import EpochLine

GUESS = math.log(10)


def history(train: list[float], val: list[float], seen: list[float], judged: list[float]) -> list[EpochLine]:
    rows = zip(train, val, seen, judged, strict=True)
    return [EpochLine("p", n, 1e-3, a, c, b, d) for n, (a, b, c, d) in enumerate(rows, 1)]


RISING = [0.3, 0.5, 0.6, 0.7, 0.75, 0.8]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (history([2.3, 2.29, 2.28, 2.28], [2.3] * 4, [0.1] * 4, [0.1] * 4), "not started"),
        (history([1.0, 1.9, 0.9, 2.5, 1.0, 1.9], [1.0] * 6, RISING, RISING), "the learning rate is too high"),
        (history([1.0, 0.5, 0.2, 0.1, 0.05, 0.02], [0.9, 0.7, 0.8, 0.9, 1.1, 1.4], RISING, RISING),
         "lowest after epoch 2 (0.700) and 1.400 at the end: overfitting"),
        (history([1.0, 0.8, 0.6, 0.5, 0.5, 0.5], [0.9] * 6, RISING, [0.5, 0.7, 0.7, 0.7, 0.7, 0.7]), "a plateau"),
        (history([1.5, 1.2, 1.0, 0.9, 0.8, 0.7], [1.0] * 6, RISING, RISING), "still rising: val gained 0.100"),
        (history([1.0, 0.5, 0.2, 0.1], [0.9] * 4, [0.8, 0.9, 0.98, 1.0], [0.6, 0.7, 0.7, 0.7]), "a gap: top1 is 1.000"),
        (history([1.0, 0.9, 0.8, 0.7], [0.5] * 4, [0.6, 0.7, 0.7, 0.7], [0.8, 0.85, 0.9, 0.9]),
         "val is better than train"),
    ],
)  # fmt: skip
def test_a_curve_is_told_by_its_fault(rows: list[EpochLine], said: str) -> None:
    assert any(said in text for text in diagnosed(rows, guess=GUESS)), diagnosed(rows, guess=GUESS)


def test_a_sound_curve_and_one_that_is_none_are_told_as_such() -> None:
    sound = history(
        [1.0, 0.6, 0.4, 0.35, 0.3, 0.28], [0.9, 0.6, 0.5, 0.45, 0.44, 0.43], RISING, [0.6, 0.7, 0.75, 0.78, 0.785, 0.79]
    )
    assert diagnosed(sound, guess=GUESS) == ["the curves look sound: the loss falls, val follows train"]
    solved = [EpochLine("probe", 1, 0.0, None, None, 0.5, 0.9)]
    assert "there are no curves" in diagnosed(solved, guess=GUESS)[0]
