"""Sets that are joined at once are those that are joined pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.ties import Ties


def sets_of(count: int, pairs: np.ndarray) -> list[tuple[int, ...]]:
    """Two sets become one with every pair."""
    found = [{place} for place in range(count)]
    for one, other in pairs.tolist():
        joined = [members for members in found if one in members or other in members]
        found = [members for members in found if members not in joined] + [set.union(*joined)]
    return sorted(tuple(sorted(members)) for members in found)


@pytest.mark.parametrize("num_pairs", [0, 10, 60, 150, 400])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_sets_are_the_components_of_a_graph_however_many_pairs_come_at_once(num_pairs: int, batch: int) -> None:
    for seed in range(10):
        pairs = np.random.default_rng(seed).integers(0, 120, (num_pairs, 2))
        ties = Ties(120)
        for start in range(0, num_pairs, batch):
            ties.join(*pairs[start : start + batch].T)
        wanted = sets_of(120, pairs)
        assert ties.groups() == wanted
        number = {place: at for at, members in enumerate(wanted) for place in members}
        assert ties.numbers().tolist() == [number[place] for place in range(120)]
        assert ties.roots(np.arange(120)).tolist() == [wanted[number[place]][0] for place in range(120)]


@pytest.mark.parametrize("step", [1, -1])
def test_chains_and_stars_are_one_set(step: int) -> None:
    places = np.arange(5000)[::step]
    for left, right in ((places[:-1], places[1:]), (np.full(5000, 4999), places), (places[::2], places[1::2])):
        ties = Ties(5000)
        ties.join(left, right)
        assert len(ties.groups()) == (1 if len(left) > 2500 else 2500)


def test_equal_keys_are_tied_and_empty_ones_are_not() -> None:
    ties = Ties(6)
    ties.join_alike(["a", "", "b", "a", "", "c"])
    assert ties.groups() == [(0, 3), (1,), (2,), (4,), (5,)]
    ties.join_alike([None, "x", None, "y", "x", "y"])
    assert ties.groups() == [(0, 3, 5), (1, 4), (2,)]
    ties.join_alike(["p", "q", "r", "s", "t", "u"])
    assert ties.groups() == [(0, 3, 5), (1, 4), (2,)]
