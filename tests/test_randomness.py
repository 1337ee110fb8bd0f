"""Random numbers depend on their place alone, and leave no trace."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from finetune.randomness import Resamples, derive, derive_each, forked, resampled
from tests.support import random_states


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_place_has_its_seed_for_good() -> None:
    # Pinned: were these to change, no earlier run could be repeated.
    assert derive(0) == 7210762507766007076
    assert derive(0, "order", 1, 2) == 9212999772791970778
    assert derive(2**63 - 1, "image", 0, 0, "ant/ü.jpg") == 615715714908055962


def test_every_place_has_another_seed() -> None:
    places = [
        (),
        *itertools.product(["order", "image"], range(10), range(10)),
        *itertools.product(["order"], ["1", "12"], ["2", ""]),
        ("order", 1),
        ("order", 12),
        ("order1", 2),
        ("order", (1, 2)),
    ]
    seeds = [derive(seed, *place) for seed in range(5) for place in places]
    assert len(set(seeds)) == len(seeds)


def test_seeds_are_whole_numbers_of_63_bits() -> None:
    seeds = [derive(seed) for seed in range(1000)]
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


def test_names_of_any_bytes_have_a_seed() -> None:
    assert derive(0, "\udcff") != derive(0, "\udcfe") != derive(0, "a\nb")


def test_inside_of_a_fork_all_three_generators_are_seeded() -> None:
    found = []
    for seed in (1, 1, 2):
        draws()
        with forked(seed):
            found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_after_a_fork_the_generators_go_on_as_if_there_had_been_none() -> None:
    before = random_states()
    with forked(5):
        inside = [draws() for _ in range(3)]
        assert random_states() != before
    assert random_states() == before
    assert draws() not in inside


def test_an_error_inside_of_a_fork_passes_and_leaves_the_states() -> None:
    before = random_states()
    with pytest.raises(KeyError), forked(5):
        draws()
        raise KeyError("x")
    assert random_states() == before


def test_a_fork_in_a_fork_leaves_the_outer_one_as_it_was() -> None:
    with forked(1):
        expected = [draws(), draws()]
    with forked(1):
        first = draws()
        with forked(2):
            draws()
        assert [first, draws()] == expected


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_seed_of_63_bits_is_accepted(seed: int) -> None:
    with forked(seed):
        first = draws()
    with forked(seed):
        assert draws() == first


def test_the_generator_of_a_mac_is_seeded_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "before")
    monkeypatch.setattr(torch.mps, "manual_seed", calls.append)
    monkeypatch.setattr(torch.mps, "set_rng_state", calls.append)
    with pytest.raises(ValueError, match="inside"), forked(7, devices=(torch.device("mps"),)):
        raise ValueError("inside")
    assert calls == [7, "before"]
    with forked(7, devices=(torch.device("cpu"),)):
        pass
    assert calls == [7, "before"]


@pytest.mark.parametrize("units", [None, [4, 4, 0, 9, 9, 9, 1], [0] * 7])
def test_resamples_drawn_one_by_one_are_those_drawn_at_once(units: list[int] | None) -> None:
    unit = np.unique(units or range(7), return_inverse=True)[1]
    drawn = np.random.default_rng(3).integers(0, unit.max() + 1, (20, unit.max() + 1))
    wanted = [[int((row == number).sum()) for number in unit] for row in drawn]
    several = Resamples(7, units, draws=20, seed=3)
    assert [often.tolist() for often in several] == wanted
    assert [often.tolist() for often in several] == wanted  # and the same ones again
    assert resampled(7, units, draws=20, seed=3).tolist() == wanted


def test_seeds_of_many_names_are_those_of_each() -> None:
    names = ["ant/ü.jpg", "it's", 'a "b"', 'it\'s "both"', "\udcff", "a\nb\\c", "", "\u202e", "猫.png"]
    for seed in (0, -3, 2**63 - 1):
        assert derive_each(seed, "split", names).tolist() == [derive(seed, "split", name) for name in names]
    assert len(derive_each(0, "split", [])) == 0
