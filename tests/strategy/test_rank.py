"""The ranking is by predicted accuracy; what is recommended is the cheapest that cannot be told from the best."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from finetune.evaluation.intervals import share, wilson
from finetune.strategy.rank import Candidate, difference, rank, strongest_in_general


def candidate(name: str, hits: str | np.ndarray, *, gmacs: float = 1.0, standing: float | None = None) -> Candidate:
    found = np.array([bool(int(hit)) for hit in hits])
    return Candidate(name, (224, 224), int(gmacs * 1e6), gmacs, share(found), found, 0.5, -1.0, 2.0, standing)


def guessing(right: int, count: int = 100) -> np.ndarray:
    return np.arange(count) < right


def test_candidates_stand_from_the_best_predicted_down_whatever_their_order() -> None:
    several = [candidate(name, guessing(right)) for name, right in (("a", 60), ("b", 90), ("c", 75))]
    for order in permutations(several):
        assert [one.name for one in rank(order).candidates] == ["b", "c", "a"]
    assert several[0].predicted == wilson(0.6, 100)


def test_of_equals_the_cheaper_stands_first_and_is_taken() -> None:
    found = rank([candidate("dear", guessing(90), gmacs=4), candidate("cheap", guessing(90), gmacs=0.3)])
    assert [one.name for one in found.candidates] == ["cheap", "dear"]
    assert found.recommended == "cheap"


def test_a_cheaper_one_within_one_standard_error_is_taken_and_one_beyond_is_not() -> None:
    best = candidate("best", guessing(90), gmacs=4)
    near = np.roll(guessing(89), 5)  # loses 5 or so and wins 4 or so: a difference of one image says nothing
    taken = rank([best, candidate("near", near, gmacs=1)])
    assert taken.recommended == "near"
    assert "within one standard error of the best (best, 0.900), at 1 instead of 4 GMACs" in taken.reason
    kept = rank([best, candidate("far", guessing(80), gmacs=1)])
    assert kept.recommended == "best"
    assert "the best; nothing cheaper" in kept.reason


def test_a_dearer_one_is_never_taken_for_being_near() -> None:
    found = rank([candidate("best", guessing(90), gmacs=1), candidate("near", np.roll(guessing(89), 5), gmacs=4)])
    assert found.recommended == "best"


def test_differences_are_paired() -> None:
    one, nested, shifted = guessing(90), guessing(84), np.roll(guessing(84), 9)
    assert difference(candidate("a", one), candidate("b", nested)).low > 0  # six images, all one way
    assert difference(candidate("a", one), candidate("b", shifted)).low < 0  # as many, but both ways
    alike = rank([candidate("a", one), candidate("b", nested), candidate("c", shifted)])
    assert "cannot separate a from c (95 %)" in alike.remarks[0]


def test_the_strongest_is_that_of_the_highest_standing_else_the_largest() -> None:
    small, large = candidate("small", "1", gmacs=1, standing=80.0), candidate("large", "1", gmacs=9, standing=70.0)
    unknown = candidate("unknown", "1", gmacs=20)
    assert strongest_in_general([large, unknown, small]).name == "small"
    assert strongest_in_general([unknown, candidate("other", "1", gmacs=3)]).name == "unknown"


def test_the_strongest_stays_on_the_list_however_badly_it_was_predicted() -> None:
    weak = candidate("strong", guessing(40), gmacs=5, standing=84.0)
    found = rank([candidate("best", guessing(90), standing=70.0), weak])
    assert found.shortlist == ("best", "strong")
    assert any("strong stays on the list as the strongest on ImageNet" in remark for remark in found.remarks)
    same = rank([candidate("best", guessing(90), standing=90.0), weak])
    assert same.shortlist == ("best",)
    assert not any("stays on the list" in remark for remark in same.remarks)


def test_two_or_three_start_whoever_they_are() -> None:
    three = [
        candidate("best", guessing(90), gmacs=4),
        candidate("near", np.roll(guessing(89), 5), gmacs=1),
        candidate("strong", guessing(50), gmacs=9),
        candidate("last", guessing(20), gmacs=1),
    ]
    assert rank(three).starters == ("best", "near", "strong")
    one = [candidate("all", guessing(90), gmacs=9), candidate("b", guessing(60)), candidate("c", guessing(50))]
    assert rank(one).starters == ("all", "b")
    assert rank(one[:1]).starters == ("all",)


def test_a_class_of_few_images_is_remarked() -> None:
    only = [candidate("a", guessing(90))]
    assert any("rarest class has 2" in remark for remark in rank(only, images_of_rarest=2).remarks)
    assert rank(only, images_of_rarest=50).remarks == ()
    assert rank(only).reason == "a, the only candidate"


@pytest.mark.parametrize("hits", ["0000", "1111", "1"])
def test_all_wrong_all_right_and_a_single_image_have_a_ranking(hits: str) -> None:
    found = rank([candidate("a", hits, gmacs=2), candidate("b", hits, gmacs=1)])
    assert found.recommended == "b"
