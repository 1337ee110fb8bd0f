"""Learning rate and momentum as functions of the step, against formulas and torch's own schedulers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR, ReduceLROnPlateau, StepLR

from finetune.errors import RecipeError
from finetune.optim.schedules import SCHEDULES, lr_factor, momentum_at, plateaus, warmup_steps
from finetune.prepare.asked import recipe_of
from finetune.settings import OptimSection

NEVER_FLAT = {"warmup": 0.0}


def section(schedule: Any, **numbers: Any) -> OptimSection:
    return OptimSection(schedule=schedule, **numbers)


def factors(total: int, optim: OptimSection, *, per_epoch: int = 10, drops: int = 0) -> list[float]:
    return [lr_factor(step, total=total, per_epoch=per_epoch, optim=optim, drops=drops) for step in range(total)]


def of_torch(make: Any, total: int) -> tuple[list[float], list[float]]:
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(optimiser)
    rates, momenta = [], []
    for _ in range(total):
        rates.append(optimiser.param_groups[0]["lr"])
        momenta.append(optimiser.param_groups[0]["momentum"])
        optimiser.step()
        scheduler.step()
    return rates, momenta


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_learns_and_none_above_the_peak(schedule: str) -> None:
    for total, warmup in product([1, 2, 3, 10, 101], [0.0, 0.01, 0.1, 0.5, 0.99, "auto", "1 step", "300 epochs"]):
        computed = factors(total, section(schedule, warmup=warmup))
        assert all(0 < factor <= 1 for factor in computed), (total, warmup)


@pytest.mark.parametrize("schedule", sorted({*SCHEDULES} - {"one-cycle"}))
def test_it_rises_to_the_peak_in_equal_steps_then_falls_or_stays(schedule: str) -> None:
    computed = factors(40, section(schedule))
    assert computed[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert computed[4:] == sorted(computed[4:], reverse=True)


def test_the_cosine_has_its_known_values() -> None:
    computed = factors(100, section("cosine", **NEVER_FLAT))
    assert computed[0] == 1
    assert computed[25] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert computed[99] == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))


def test_one_cycle_is_that_of_torch_with_its_momentum() -> None:
    rates, momenta = of_torch(lambda optimiser: OneCycleLR(optimiser, max_lr=1.0, total_steps=50), 49)
    optim = section("one-cycle")
    assert factors(50, optim)[:49] == pytest.approx(rates)
    cycled = [momentum_at(step, total=50, per_epoch=10, optim=optim) for step in range(49)]
    assert cycled == pytest.approx(momenta)


def test_step_and_polynomial_are_those_of_torch() -> None:
    rates, _ = of_torch(lambda optimiser: StepLR(optimiser, step_size=10, gamma=0.3), 40)
    assert factors(40, section("step", drop=0.3, drop_every=0.25, **NEVER_FLAT)) == pytest.approx(rates)
    rates, _ = of_torch(lambda optimiser: PolynomialLR(optimiser, total_iters=40, power=2.0), 40)
    assert factors(40, section("polynomial", power=2.0, **NEVER_FLAT)) == pytest.approx(rates)


def test_a_plateau_is_that_of_torch() -> None:
    losses = [1.0, 0.9, 0.95, 0.93, 0.91, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.4999999]
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ReduceLROnPlateau(optimiser, factor=0.5, patience=1, threshold=1e-4)
    for done, loss in enumerate(losses, 1):
        scheduler.step(loss)
        drops = plateaus(losses[:done], patience=2)
        mine = lr_factor(5, total=10, per_epoch=1, optim=section("plateau", drop=0.5, **NEVER_FLAT), drops=drops)
        assert mine == pytest.approx(optimiser.param_groups[0]["lr"])


def test_a_warm_up_is_a_share_or_epochs_or_steps_and_never_all() -> None:
    def steps(warmup: Any, schedule: str = "cosine") -> int:
        return warmup_steps(section(schedule, warmup=warmup), total=100, per_epoch=20)

    assert [steps("auto"), steps("auto", "one-cycle"), steps(0.25), steps("2 epochs"), steps("7 steps")] == [
        10, 30, 25, 40, 7,
    ]  # fmt: skip
    assert steps("9 epochs") == 99


def test_a_momentum_rises_from_where_it_is_told_to_where_it_is() -> None:
    optim = section("constant", name="momentum", momentum=0.99, momentum_from=0.5)
    momenta = [momentum_at(step, total=50, per_epoch=10, optim=optim) for step in range(50)]
    assert momenta[0] == 0.5 and momenta[-1] == pytest.approx(0.99)
    assert momenta == sorted(momenta)  # type: ignore[type-var]
    assert momentum_at(3, total=50, per_epoch=10, optim=section("cosine")) is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"optim.power": 2.0}, "optim.power"),
        ({"optim.drop": 0.5, "optim.schedule": "cosine"}, "optim.drop"),
        ({"optim.drop_every": 0.5, "optim.schedule": "plateau"}, "optim.drop_every"),
        ({"optim.drop_patience": 2, "optim.schedule": "step"}, "optim.drop_patience"),
        ({"optim.momentum": 0.5}, "optim.momentum"),
        ({"optim.momentum_from": 0.5, "optim.name": "adagrad"}, "optim.momentum_from"),
        ({"optim.warmup": "2 days"}, "optim.warmup"),
    ],
)
def test_a_number_without_a_use_is_refused(overrides: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}.*(no meaning|must be)"):
        recipe_of(overrides=overrides)
