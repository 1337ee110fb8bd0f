"""Who races, how far, and what it costs at most: whichever of the costly ones wins."""

from __future__ import annotations

import itertools

import pytest

from finetune.strategy.budget import Option
from finetune.strategy.matrix import decide
from finetune.strategy.race import (
    MOST_OVERHEAD,
    RANKED_SHARE,
    CandidateWork,
    Place,
    candidates,
    images_to_rank,
    judge,
    overhead,
    plan_backbone_race,
    plan_race,
)
from finetune.types import Evidence, Interval, Size, Verdict

SURE = Interval(0.5, 0.4, 0.6)


def evidence() -> Evidence:
    """Evidence of no cell in particular: the matrix says what each cell means to it."""
    size = Size(1000, 5, 200, 200.0, 1.0, 600, SURE)
    probe = {name: Interval(top1, top1 - 0.1, top1 + 0.1) for name, top1 in (("stem", 0.2), ("one", 0.5), ("two", 0.8))}
    return Evidence(size, probe, joint=SURE, behind=Interval(0.0, 0.0, 0.0), spread=1.0, logme=0.5)


def works(**passes: tuple[float, float, int]) -> dict[str, CandidateWork]:
    """Works over 100 images from (passes before the first epoch, passes of an epoch, epochs)."""
    return {
        name: CandidateWork((100 * (first + each), *[100 * each] * (count - 1)), 100)
        for name, (first, each, count) in passes.items()
    }


@pytest.mark.parametrize("size", ["few", "many"])
@pytest.mark.parametrize("similarity", ["similar", "dissimilar"])
def test_the_verdict_starts_with_its_neighbours_in_the_matrix(size: str, similarity: str) -> None:
    other = {"few": "many", "many": "few", "similar": "dissimilar", "dissimilar": "similar"}
    own = decide(evidence(), assume=(size, similarity))
    column = decide(evidence(), assume=(size, other[similarity]))
    row = decide(evidence(), assume=(other[size], similarity))
    numbers = [(one.strategy, one.top_k, one.probe_at) for one in (own, column, row)]
    if size == "many":
        numbers.insert(1, ("full", None, None))
    numbers = list(dict.fromkeys(numbers))[:3]
    found = candidates(own, evidence())
    assert [(one.strategy, one.top_k, one.probe_at) for one in found] == numbers
    assert len(found) > 1


@pytest.mark.parametrize(
    ("strategy", "top_k", "probe_at", "label"),
    [
        ("head-only", None, None, "head-only"),
        ("full", None, None, "full"),
        ("lp-ft", None, None, "lp-ft"),
        ("lp-ft", 7, None, "lp-ft-7"),
        ("top-k", 3, None, "top-k-3"),
        ("linear-probe", None, "one", "linear-probe-one"),
        ("linear-probe", None, "all", "linear-probe-all"),
        ("linear-probe", None, "stem+one+two", "linear-probe-3-stages"),
    ],
)
def test_the_verdicts_own_numbers_are_kept(strategy: str, top_k: int | None, probe_at: str | None, label: str) -> None:
    verdict = Verdict("many", "similar", strategy, "why", SURE, SURE, top_k=top_k, probe_at=probe_at)
    own = candidates(verdict, evidence())[0]
    assert (own.label, own.strategy, own.top_k, own.probe_at) == (label, strategy, top_k, probe_at)


def test_no_winner_pays_more_than_half_of_itself_for_the_others() -> None:
    firsts, each, counts = (0.0, 1.0, 3.4), (0.1, 0.7, 3.2), (3, 12, 30)
    kinds = list(itertools.product(firsts, each, counts))
    raced = 0
    for one, two, three in itertools.product(kinds, kinds[::2], kinds[::3]):
        field = works(own=one, near=two, far=three)
        plan = plan_race(field)
        started = {label: field[label] for label in plan.starts}
        assert plan.starts[0] == "own"
        assert {*plan.starts, *plan.left_out} == {*field}
        raced += len(started) > 1
        for label, work in started.items():
            if len(started) > 1 and not all(one.is_cheap for one in started.values()):
                assert overhead(started, plan.rungs, winner=label) <= MOST_OVERHEAD * work.whole
    assert raced > 300


@pytest.mark.parametrize(("num_images", "starts"), [(500, ("head", "probe")), (501, ("head",))])
def test_of_many_images_a_few_passes_count_too(num_images: int, starts: tuple[str, ...]) -> None:
    head, probe = (
        CandidateWork((4.0 * num_images, *[0.01] * 29), num_images),
        CandidateWork((1.2 * num_images,), num_images),
    )
    plan = plan_race({"head": head, "probe": probe})
    assert plan.starts == starts
    assert plan.left_out == {} if len(starts) == 2 else {"probe": "all of head costs more than half of probe"}


def test_full_and_top_k_race_and_a_probe_beside_them_would_win_too_dearly() -> None:
    plan = plan_race(works(full=(0, 3.2, 12), topk=(3.4, 0.7, 12), probe=(1, 0.02, 1)))
    assert (plan.starts, plan.rungs, plan.whole) == (("full", "topk"), (1,), ())
    assert plan.left_out["probe"] == "an epoch of full costs more than half of probe"


def test_a_choice_on_cached_features_races_with_its_kind_which_runs_whole() -> None:
    plan = plan_race(works(head=(4, 0.01, 30), probe=(0.9, 0, 1), topk=(3.4, 0.7, 12)))
    assert plan.starts == plan.whole == ("head", "probe")
    assert set(plan.left_out) == {"topk"}


def test_one_on_cached_features_starts_beside_a_costly_one_that_is_cheap_enough() -> None:
    plan = plan_race(works(topk=(0.1, 0.5, 12), head=(5, 0.01, 30)))
    assert plan.starts == ("topk",)
    plan = plan_race(works(topk=(0.1, 0.5, 30), head=(5, 0.01, 30)))
    assert (plan.starts, plan.whole) == (("topk", "head"), ("head",))


def test_a_costly_one_whose_first_epoch_is_too_dear_is_left_out() -> None:
    plan = plan_race(works(topk=(3, 0.5, 12), huge=(0, 10, 12)))
    assert (plan.starts, plan.rungs) == (("topk",), ())
    assert "an epoch of huge" in plan.left_out["huge"]


def test_the_first_rung_is_at_most_a_third_of_the_epochs() -> None:
    assert plan_race(works(a=(0, 3, 30), b=(0, 3, 30))).rungs == (10,)
    assert plan_race(works(a=(0, 3, 30), b=(0, 3, 30), c=(0, 3, 30))).rungs == (5, 10)


def test_the_worse_half_stops_and_ties_go_to_lower_loss_then_less_work() -> None:
    field = works(a=(0, 3, 12), b=(0, 2, 12), c=(0, 1, 12))
    ranked = judge([Place("a", 2, 0.8, 0.5), Place("b", 2, 0.8, 0.4), Place("c", 2, 0.7, 0.1)], field, is_last=False)
    assert [(place.label, place.is_kept) for place in ranked] == [("b", True), ("a", True), ("c", False)]
    ranked = judge([Place("a", 2, 0.8, 0.5), Place("b", 2, 0.8, 0.5)], field, is_last=True)
    assert [(place.label, place.is_kept) for place in ranked] == [("b", True), ("a", False)]
    assert judge([Place("a", 2, 0.1, 9.0)], field, is_last=False)[0].is_kept


def test_what_is_slow_to_rank_gives_way_and_the_rest_shares_a_quarter_of_the_time() -> None:
    seconds = {"quick": 0.01, "middling": 0.1, "slow": 5.0}
    count, left_out = images_to_rank(seconds, 100.0, fewest=64, most=600)
    assert [*left_out] == ["slow"] and "64 images" in left_out["slow"]
    assert count * (0.01 + 0.1) <= RANKED_SHARE * 100 < (count + 1) * (0.01 + 0.1)
    assert images_to_rank(seconds, 1e9, fewest=64, most=600) == (600, {})
    count, left_out = images_to_rank(seconds, 0.1, fewest=64, most=600)
    assert count == 64 and [*left_out] == ["slow", "middling"]  # one is always left


def options(works: dict[str, CandidateWork], seconds: float) -> dict[str, Option]:
    """Options whose every epoch takes so many seconds."""
    return {label: Option("full", len(work.epochs), 1, 0.0, seconds) for label, work in works.items()}


def test_backbones_start_from_the_favourite_on_while_the_time_lasts() -> None:
    field = works(favourite=(0, 3.2, 12), second=(0, 3.2, 12), third=(0, 3.2, 12))
    whole = plan_backbone_race(field, {}, None)
    assert (whole.starts, whole.rungs, whole.left_out) == (("favourite", "second", "third"), (4, 8), {})
    two = 12 + 4  # epochs: the winner to its end, the loser up to the rung
    assert plan_backbone_race(field, options(field, 1.0), two).starts == ("favourite", "second")
    alone = plan_backbone_race(field, options(field, 1.0), two - 1)
    assert (alone.starts, alone.rungs) == (("favourite",), ())
    assert set(alone.left_out) == {"second", "third"} and "16s" in alone.left_out["second"]
    three = 3 * 8 + 4
    assert len(plan_backbone_race(field, options(field, 1.0), three).starts) == 3


def test_a_pass_of_a_larger_network_weighs_more_and_stays_cheap_on_cached_features() -> None:
    small, large = CandidateWork((400.0, *[0.01] * 9), 100), CandidateWork((400.0, *[0.01] * 9), 100, gmacs=4.0)
    assert large.whole == 4 * small.whole and large.until(3) == 4 * small.until(3)
    assert small.is_cheap and large.is_cheap


@pytest.mark.parametrize(("behind", "winner"), [(4, "favourite"), (5, "other")])
def test_a_favourite_gives_way_only_to_what_val_can_tell_from_it(behind: int, winner: str) -> None:
    field = works(favourite=(0, 1, 3), other=(0, 1, 3))
    places = [Place("other", 1, (50 + behind) / 100, 0.1), Place("favourite", 1, 0.5, 0.9)]
    first, _ = judge(places, field, is_last=True, favourite="favourite", told_apart=4.5 / 100)
    assert (first.label, first.is_kept) == (winner, True)
    first, _ = judge(places, field, is_last=True)
    assert first.label == "other"
