"""What every strategy trains, for how long and how fast, on layer groups made up here."""

from __future__ import annotations

import pytest

from finetune.errors import RecipeError
from finetune.strategy.strategies import STRATEGIES, Choice, is_full, is_pretrained, phases, retrained, up_to_epoch
from finetune.types import LayerGroup, Phase
from finetune.values import STRATEGY_NAMES

NAMES = ["stem", "one", "two", "three", "four", "head"]


def groups(count: int = 5) -> tuple[LayerGroup, ...]:
    """Return layer groups, `count` of them of the backbone."""
    names = [*(NAMES[:-1] if count == 5 else [f"g{i}" for i in range(count)]), "head"]
    return tuple(LayerGroup(name, (f"{name}.weight",), 1, is_head=name == "head") for name in names)


def planned(strategy: str, *, epochs: int = 12, count: int = 5, **more: object) -> tuple[Phase, ...]:
    return phases(Choice(strategy, epochs, lr=0.1, layer_decay=0.5, **more), groups(count))


def trained(phase: Phase) -> list[str]:
    return list(phase.plan.trained)


def renewed(phase: Phase) -> list[str]:
    return [plan.group for plan in phase.plan.groups if plan.is_reinitialised]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("reinit", [False, True])
@pytest.mark.parametrize("has_linear_head", [False, True])
def test_every_plan_covers_every_group_and_says_the_same_thrice(
    strategy: str, reinit: bool, has_linear_head: bool
) -> None:
    for phase in planned(strategy, reinit=reinit, has_linear_head=has_linear_head, top_k=2):
        assert [plan.group for plan in phase.plan.groups] == NAMES
        for plan in phase.plan.groups:
            assert plan.is_frozen is (plan.lr_scale == 0)
            assert not (plan.is_frozen and plan.norm_statistics == "updated")
            assert not (plan.is_frozen and plan.is_reinitialised)
        assert phase.plan.trained[-1] == "head"
        assert phase.lr == 0.1


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("reinit", [False, True])
@pytest.mark.parametrize("has_linear_head", [False, True])
def test_nothing_that_was_trained_is_thrown_away(strategy: str, reinit: bool, has_linear_head: bool) -> None:
    touched: set[str] = set()
    for phase in planned(strategy, reinit=reinit, has_linear_head=has_linear_head, top_k=2):
        assert not touched.intersection(renewed(phase))
        touched.update(trained(phase))
    assert "head" in retrained(planned(strategy, reinit=reinit, top_k=2))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("has_linear_head", [False, True])
def test_the_epochs_of_the_phases_are_those_of_the_recipe(strategy: str, has_linear_head: bool) -> None:
    for epochs in (4, 5, 7, 30):
        found = planned(strategy, epochs=epochs, has_linear_head=has_linear_head)
        solved = [phase for phase in found if phase.solver == "lbfgs"]
        assert all(phase.epochs == 0 for phase in solved), epochs
        assert all(phase.epochs > 0 for phase in found if phase.solver == "gradient"), epochs
        if solved != list(found):
            assert sum(phase.epochs for phase in found) == epochs


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("has_linear_head", [False, True])
def test_too_few_epochs_are_an_error_or_enough(strategy: str, has_linear_head: bool) -> None:
    need = {"gradual": 4, "lp-ft": 1 if has_linear_head else 2}.get(strategy, 1)
    for epochs in (1, 2, 3):
        if epochs >= need:
            assert planned(strategy, epochs=epochs, has_linear_head=has_linear_head)
        else:
            with pytest.raises(RecipeError, match=f"epochs = {epochs}: {strategy} has {need} phases"):
                planned(strategy, epochs=epochs, has_linear_head=has_linear_head)


def test_every_strategy_of_the_recipe_has_numbers_and_phases() -> None:
    assert {*STRATEGIES, "auto", "race"} == set(STRATEGY_NAMES)
    with pytest.raises(RecipeError, match="'auto' has no phases"):
        planned("auto")


def test_the_table_is_whole() -> None:
    for row in STRATEGIES.values():
        assert row.summary and row.takes <= {"top_k", "probe_at"}
        assert row.cheaper is None or row.cheaper in STRATEGIES
        assert row.top_k is None or "top_k" in row.takes
    assert [name for name in STRATEGIES if not is_pretrained(name)] == ["scratch"]
    assert is_pretrained("auto") and is_pretrained("head-only or full")


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_numbers_of_a_strategy_suffice_for_its_phases(strategy: str) -> None:
    numbers = STRATEGIES[strategy]
    assert planned(strategy, epochs=numbers.epochs, has_linear_head=False)
    assert numbers.lr > 0
    assert 0 < numbers.layer_decay <= 1


def test_head_only_trains_the_head() -> None:
    (phase,) = planned("head-only")
    assert (trained(phase), renewed(phase)) == (["head"], ["head"])
    assert (phase.name, phase.epochs, phase.solver) == ("head", 12, "gradient")


def test_a_linear_probe_is_solved_where_it_can_be() -> None:
    (phase,) = planned("linear-probe")
    assert (trained(phase), phase.epochs, phase.solver) == (["head"], 0, "lbfgs")
    (phase,) = planned("linear-probe", has_linear_head=False)
    assert (trained(phase), phase.epochs, phase.solver) == (["head"], 12, "gradient")


@pytest.mark.parametrize("k", range(6))
def test_top_k_trains_the_head_and_the_last_k_groups(k: int) -> None:
    (phase,) = planned("top-k", top_k=k)
    assert trained(phase) == NAMES[5 - k :]
    assert renewed(phase) == ["head"]
    assert is_full(Choice("top-k", 1, 0.1, 1.0, top_k=k), groups()) is (k == 5)


def test_top_k_beyond_the_backbone_is_an_error_with_the_groups() -> None:
    with pytest.raises(RecipeError, match="top_k = 6: this backbone has 5 layer groups") as caught:
        planned("top-k", top_k=6)
    assert caught.value.hint == "From input to output: stem, one, two, three, four."


def test_the_learning_rate_shrinks_by_group_towards_the_input() -> None:
    (phase,) = planned("full")
    assert [plan.lr_scale for plan in phase.plan.groups] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    (phase,) = planned("top-k", top_k=2)
    assert [plan.lr_scale for plan in phase.plan.groups] == [0, 0, 0, 1 / 4, 1 / 2, 1]


@pytest.mark.parametrize(
    ("strategy", "reinit", "expected"),
    [
        ("full", False, ["head"]),
        ("full", True, NAMES),
        ("scratch", False, NAMES),
        ("top-k", True, ["three", "four", "head"]),
        ("head-only", True, ["head"]),
    ],
)
def test_reinit_renews_what_is_retrained(strategy: str, reinit: bool, expected: list[str]) -> None:
    (phase,) = planned(strategy, reinit=reinit, top_k=2)
    assert renewed(phase) == expected
    assert list(retrained((phase,))) == expected


def test_lp_ft_goes_on_from_the_head_that_was_solved() -> None:
    probe, full = planned("lp-ft")
    assert (trained(probe), renewed(probe), probe.solver) == (["head"], ["head"], "lbfgs")
    assert (trained(full), renewed(full), full.epochs) == (NAMES, [], 12)


def test_lp_ft_trains_a_head_that_cannot_be_solved_for_a_third_of_the_epochs() -> None:
    probe, full = planned("lp-ft", has_linear_head=False)
    assert (probe.epochs, full.epochs, probe.solver) == (4, 8, "gradient")


def test_gradual_unfreezes_from_the_head_to_everything() -> None:
    found = planned("gradual")
    assert [phase.name for phase in found] == ["head", "top-2", "top-3", "top-5"]
    assert [trained(phase) for phase in found] == [["head"], NAMES[3:], NAMES[2:], NAMES]
    assert [renewed(phase) for phase in found] == [["head"], [], [], []]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 33])
def test_gradual_gets_deeper_with_every_phase_and_ends_at_full(count: int) -> None:
    depths = [len(trained(phase)) - 1 for phase in planned("gradual", count=count)]
    assert depths[0] == 0
    assert depths[-1] == count
    assert depths == sorted(set(depths))
    assert len(depths) == min(4, count + 1)


def test_gradual_with_reinit_renews_every_group_once_when_its_turn_comes() -> None:
    found = planned("gradual", reinit=True)
    assert [renewed(phase) for phase in found] == [["head"], ["three", "four"], ["two"], ["stem", "one"]]


def test_phases_up_to_an_epoch_keep_their_schedules_and_drop_what_came_later() -> None:
    planned = phases(Choice("gradual", epochs=12, lr=1e-3, layer_decay=0.7), groups())
    done = [planned[0].name] * 2 + [planned[1].name]
    cut = up_to_epoch(planned, done)
    assert [(phase.name, phase.stop_after, phase.epochs) for phase in cut] == [
        (planned[0].name, 2, planned[0].epochs),
        (planned[1].name, 1, planned[1].epochs),
    ]
    solved = phases(Choice("lp-ft", epochs=12, lr=1e-3, layer_decay=0.7), groups())
    assert up_to_epoch(solved, ["probe"]) == solved[:1]


@pytest.mark.parametrize(
    ("top_k", "name", "expected"), [(1, "top-1", NAMES[4:]), (3, "top-3", NAMES[2:]), (5, "full", NAMES)]
)
def test_lp_ft_goes_on_with_as_many_groups_as_it_is_told(top_k: int, name: str, expected: list[str]) -> None:
    probe, then = planned("lp-ft", top_k=top_k)
    assert (probe.solver, then.name) == ("lbfgs", name)
    assert (trained(then), renewed(then)) == (expected, [])


@pytest.mark.parametrize("strategy", ["top-k", "full", "lp-ft", "gradual"])
@pytest.mark.parametrize("updates_norms", [False, True])
def test_norm_statistics_of_pretrained_layers_stay_unless_asked(strategy: str, updates_norms: bool) -> None:
    for phase in planned(strategy, top_k=2, updates_norms=updates_norms):
        for plan in phase.plan.groups:
            is_updated = not plan.is_frozen and (plan.group == "head" or updates_norms)
            assert (plan.norm_statistics == "updated") is is_updated


@pytest.mark.parametrize("strategy", ["scratch", "full"])
def test_norm_statistics_of_what_is_new_are_updated(strategy: str) -> None:
    (phase,) = planned(strategy, reinit=True)
    assert {plan.norm_statistics for plan in phase.plan.groups} == {"updated"}
