"""The four cells of the matrix, the scores that tell them apart, and what a user may assume instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluation.intervals import wilson
from finetune.strategy.matrix import (
    FAR_ENTROPY,
    FAR_SHIFT,
    FEW,
    FOR_ALL_STAGES,
    MOST_SOLVED,
    PLENTY,
    SOLVED,
    decide,
    similarity_score,
    size_score,
    told_apart,
)
from finetune.types import Confidence, Evidence, Interval, Size

NOTHING = Interval(0, 0, 0)
NEAR, FAR = Interval(FAR_SHIFT / 2, FAR_SHIFT / 2.2, FAR_SHIFT / 1.8), Interval(FAR_SHIFT * 2, FAR_SHIFT, 1)


def evidence(
    *, num_images: int = 400, per_class: float = 40, probe: tuple[float, ...] = (0.3, 0.5, 0.9), **more: Any
) -> Evidence:
    names = ("stem", *(f"layer{number}" for number in range(1, len(probe))))
    measured = {name: wilson(value, 500) for name, value in zip(names, probe, strict=True)}
    behind = max(probe) - probe[-1]
    return Evidence(
        size=Size(num_images, 10, 1, per_class, 1.0, 500, NOTHING),
        probe=measured,
        joint=measured[names[-1]],
        behind=Interval(behind, behind, behind),
        spread=0.1,
        logme=0.0,
        **more,
    )


@pytest.mark.parametrize(("is_many", "size"), [(False, "few"), (True, "many")])
@pytest.mark.parametrize(("shift", "similarity"), [(NEAR, "similar"), (FAR, "dissimilar")])
def test_each_cell_is_told_by_size_and_shift(is_many: bool, size: str, shift: Interval, similarity: str) -> None:
    of_a_class, in_all = FEW[similarity]
    seen = evidence(num_images=int(2 * in_all), per_class=2 * of_a_class if is_many else of_a_class / 2, shift=shift)
    found = decide(seen)
    assert (found.size, found.similarity) == (size, similarity)
    assert f"{similarity}; {size} → " in found.reason


def test_four_cells_have_the_strategies_of_the_documentation() -> None:
    found = {
        assumed: decide(evidence(), assume=assumed.split(","))
        for assumed in ("few,similar", "few,dissimilar", "many,similar", "many,dissimilar")
    }
    assert {name: (one.strategy, one.top_k, one.probe_at) for name, one in found.items()} == CELLS


CELLS = {
    "few,similar": ("linear-probe", None, "all"),
    "few,dissimilar": ("linear-probe", None, "all"),
    "many,similar": ("top-k", 2, None),
    "many,dissimilar": ("top-k", 2, None),
}


@pytest.mark.parametrize(("num_images", "probe_at"), [(FOR_ALL_STAGES - 1, None), (FOR_ALL_STAGES, "all")])
def test_of_few_similar_images_the_fewest_are_told_by_the_last_stage_alone(
    num_images: int, probe_at: str | None
) -> None:
    seen = evidence(num_images=num_images, per_class=9, shift=NEAR)
    copies = replace(seen, size=replace(seen.size, num_images=1000, num_independent=num_images))
    for found in (decide(seen), decide(copies)):
        assert (found.size, found.strategy, found.probe_at) == ("few", "linear-probe", probe_at)


def test_with_plenty_of_dissimilar_images_everything_is_trained() -> None:
    at, below = (decide(evidence(num_images=10_000, per_class=n, shift=FAR)) for n in (PLENTY, PLENTY - 1))
    assert (at.strategy, at.top_k, below.strategy, below.top_k) == ("full", None, "top-k", 2)


@pytest.mark.parametrize(("top1", "shift", "strategy"), [(SOLVED, NEAR, "head-only"), (SOLVED - 0.01, NEAR, "top-k"),
                                                         (SOLVED, FAR, "top-k")])  # fmt: skip
def test_what_the_last_stage_tells_apart_already_needs_a_head_alone(
    top1: float, shift: Interval, strategy: str
) -> None:
    found = decide(evidence(probe=(0.3, top1), shift=shift), assume=["many"])
    assert (found.size, found.strategy) == ("many", strategy)
    assert ("little is left to gain" in found.reason) is (strategy == "head-only")


def test_of_a_network_that_shows_its_last_group_alone_the_probe_stands_there() -> None:
    found = decide(evidence(probe=(0.7,), shift=FAR), assume=["few"])
    assert (found.strategy, found.probe_at) == ("linear-probe", None)


def test_of_one_image_of_a_class_nothing_is_said_to_be_told_apart() -> None:
    alone, pairs = (decide(evidence(num_images=300, per_class=n, probe=(0.0, 0.0), shift=NEAR)) for n in (1, 2))
    assert "too few to see how well they can be separated" in alone.reason
    assert "the last stage separates them at 0%" in pairs.reason


@pytest.mark.parametrize("similarity", ["similar", "dissimilar"])
@pytest.mark.parametrize(
    ("in_all", "per_class", "is_many"),
    [(1, 1, True), (0.99, 10, False), (1000, 0.99, False), (100, 2, True)],
)
def test_many_is_enough_of_a_class_and_in_all(similarity: str, in_all: float, per_class: float, is_many: bool) -> None:
    cuts = FEW[similarity]
    seen = evidence(num_images=int(in_all * cuts[1]), per_class=per_class * cuts[0])
    assert (size_score(seen, is_similar=similarity == "similar").value >= 0) is is_many


def test_ten_times_the_images_are_one_more() -> None:
    one, ten = (size_score(evidence(num_images=n, per_class=n / 2), is_similar=True).value for n in (300, 3000))
    assert ten - one == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 2.0])
def test_the_shift_of_batch_norm_comes_first(factor: float) -> None:
    shift = Interval(factor * FAR_SHIFT, 0.9 * factor * FAR_SHIFT, 1.1 * factor * FAR_SHIFT)
    unsure = Confidence(0.1, Interval(0.9, 0.8, 1.0))
    found = similarity_score(evidence(shift=shift, confidence=unsure))
    assert (found.value > 0) is (factor < 1)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 1.5])
def test_without_batch_norm_the_classifier_is_asked(factor: float) -> None:
    entropy = Interval(factor * FAR_ENTROPY, 0.9 * factor * FAR_ENTROPY, 1.1 * factor * FAR_ENTROPY)
    found = similarity_score(evidence(confidence=Confidence(0.5, entropy)))
    assert (found.value > 0) is (factor < 1)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("probe", "is_similar"),
    [((0.1, 0.56), True), ((0.1, 0.54), False), ((0.95, 0.9), True), ((0.9, 0.7), False)],
)
def test_without_either_the_last_group_must_separate(probe: tuple[float, ...], is_similar: bool) -> None:
    assert (similarity_score(evidence(probe=probe)).value > 0) is is_similar


@pytest.mark.parametrize("words", ["few", "many", "similar", "dissimilar", "few,dissimilar", "many,similar"])
def test_what_is_assumed_is_not_measured_and_the_reason_says_so(words: str) -> None:
    for shift in (NEAR, FAR):
        found = decide(evidence(shift=shift), assume=words.split(","))
        assert set(words.split(",")) <= {found.size, found.similarity}
        assert all(f"assumed {word}" in found.reason for word in words.split(","))
        assert found.reason.count("assumed") == len(words.split(","))
        assert found.similarity_score == similarity_score(evidence(shift=shift))
    assert "assumed" not in decide(evidence(), assume=["none"]).reason


def test_the_reason_says_what_was_counted_and_compared() -> None:
    found = decide(evidence(probe=(0.3, 0.7, 0.4), per_class=40.5, shift=FAR))
    assert found.reason.startswith(
        "400 images, 10 classes (median 40.5 per class); the last stage separates them at 40% ± 4%, layer1 at 70%"
    )
    assert ", earlier stages are no better" in decide(evidence(shift=NEAR)).reason
    assert "stages" not in decide(evidence(probe=(0.9,), shift=NEAR)).reason.split(";")[1]


@pytest.mark.parametrize(("probed", "them"), [(None, "them"), (10, "them"), (7, "7 of them")])
def test_the_reason_says_where_not_all_classes_were_probed(probed: int | None, them: str) -> None:
    seen = evidence()
    found = decide(replace(seen, size=replace(seen.size, num_classes_probed=probed)))
    assert f"; the last stage separates {them} at 90% ± " in found.reason


@pytest.mark.parametrize(
    ("value", "border", "digits", "shown"),
    [
        (0.17, 0.19, 2, ("0.17", "0.19")),
        (0.188, 0.19, 2, ("0.188", "0.190")),
        (0.18999, 0.19, 2, ("0.18999", "0.19000")),
        (0.19, 0.19, 2, ("0.19", "0.19")),
        (64.6, 65.0, 0, ("64.6", "65.0")),
    ],
)
def test_two_numbers_are_shown_with_the_digits_that_decide(
    value: float, border: float, digits: int, shown: tuple[str, str]
) -> None:
    assert told_apart(value, border, digits=digits) == shown


BORDER = Interval(FAR_SHIFT * 0.99, FAR_SHIFT * 0.9, FAR_SHIFT * 1.1)


def test_where_the_column_is_not_certain_both_are_named_and_the_cheaper_is_taken() -> None:
    few = evidence(num_images=90, per_class=9, shift=BORDER)  # few of similar images, many of others
    found = decide(few)
    assert (found.similarity, found.size) == ("similar", "few")
    assert (found.strategy, found.top_k, found.rival) == ("linear-probe", None, "top-k 2")
    assert "not certain that they are similar: if dissimilar, it would be top-k 2" in found.reason
    other = decide(evidence(num_images=90, per_class=9, shift=replace(BORDER, value=FAR_SHIFT * 1.01)))
    assert (other.similarity, other.strategy, other.top_k) == ("dissimilar", "linear-probe", None)
    assert "if similar, it would be linear-probe all; the cheaper is taken, linear-probe" in other.reason
    plenty = decide(evidence(num_images=9000, per_class=PLENTY, shift=BORDER))
    assert (plenty.strategy, plenty.top_k, plenty.rival) == ("top-k", 2, "full")


def test_doubt_is_not_told_where_it_changes_nothing_or_the_column_is_assumed() -> None:
    many = decide(evidence(shift=BORDER))
    assert many.rival is None and "not certain" not in many.reason
    few = evidence(num_images=90, per_class=9, shift=BORDER)
    assert decide(few, assume=["similar"]).rival is None
    assert decide(few, assume=["dissimilar"]).strategy == "top-k"
    assert decide(evidence(num_images=90, per_class=9, shift=NEAR)).rival is None


@pytest.mark.parametrize(("num_images", "strategy"), [(2000, "linear-probe"), (2001, "head-only")])
def test_a_head_of_many_images_and_classes_is_trained_by_steps(num_images: int, strategy: str) -> None:
    found = decide(evidence(num_images=num_images, per_class=9, shift=NEAR))  # of ten classes
    assert (found.size, found.strategy) == ("few", strategy)
    assert ("solving it would take longer" in found.reason) is (strategy == "head-only")


def test_the_questions_of_the_documentation_have_the_numbers_of_the_matrix() -> None:
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    questions = page.partition("As questions")[2].partition("`--strategy auto`")[0]
    enough = [f"{of_a_class:g} images a class (median) and {in_all:g} in all?" for of_a_class, in_all in FEW.values()]
    few = f"{FOR_ALL_STAGES} images in all?"
    others = [few, f"shift below {FAR_SHIFT})", f"{SOLVED * 100:g} % of them", f"{PLENTY:g} images a class"]
    assert [text for text in (*enough, *others, f"{MOST_SOLVED:,}") if text not in questions] == []
