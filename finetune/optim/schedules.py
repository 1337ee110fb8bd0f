"""Learning rate and momentum as pure functions of the step, so that a resumed run needs no state for them.

To add one: a row in `SCHEDULES`, its name in `values.Schedule`, a line in docs/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.settings import OptimSection

CYCLE_MOMENTUM = (0.95, 0.85)  # of one-cycle: at its ends, and where the learning rate is highest
CYCLE_START, CYCLE_END = 1 / 25, 1 / 25e4  # of one-cycle: shares of the peak learning rate
LEAST_GAIN = 1e-4  # share of the lowest val loss: a smaller gain counts as a plateau


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of a phase: `done` of the `steps` after the warm-up, and the drops before it."""

    done: int
    steps: int
    drops: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The share of the peak rate after the warm-up, and during it (step, steps of the warm-up)."""

    after: Callable[[Moment, OptimSection], float]
    rise: Callable[[int, int], float] = lambda step, rise: (step + 1) / (rise + 1)
    warmup: float = 0.1  # share of the steps that "auto" means


def lr_factor(step: int, *, total: int, per_epoch: int, optim: OptimSection, drops: int = 0) -> float:
    """Return the share of the peak learning rate at a step (0 is the first of `total`, of a phase).

    `drops` is how many plateaus of val came before (`plateaus`).
    """
    schedule = SCHEDULES[optim.schedule]
    rise = warmup_steps(optim, total=total, per_epoch=per_epoch)
    if step < rise:
        return schedule.rise(step, rise)
    return schedule.after(Moment(step - rise, max(total - rise, 1), drops), optim)


def momentum_at(step: int, *, total: int, per_epoch: int, optim: OptimSection) -> float | None:
    """Return the momentum (or Adam's first beta) at a step; None where it stays as it is.

    Sources: Sutskever et al. 2013, On the importance of initialization and momentum (a momentum that rises);
    Smith 2018, arXiv:1803.09820 (one that falls while the learning rate rises).
    """
    if optim.momentum_from != "none":
        end = 0.9 if optim.momentum == "auto" else optim.momentum
        return optim.momentum_from + (end - optim.momentum_from) * step / max(total - 1, 1)
    if optim.schedule != "one-cycle":
        return None
    rise = warmup_steps(optim, total=total, per_epoch=per_epoch)
    ends, middle = CYCLE_MOMENTUM
    if step < rise:
        return _anneal(ends, middle, step / max(rise - 1, 1))
    return _anneal(middle, ends, (step - rise + 1) / max(total - rise, 1))


def warmup_steps(optim: OptimSection, *, total: int, per_epoch: int) -> int:
    """Return the steps of a phase in which the learning rate rises: never all of them."""
    asked = SCHEDULES[optim.schedule].warmup if optim.warmup == "auto" else optim.warmup
    if isinstance(asked, str):
        count, unit = asked.split()
        steps = int(count) * (per_epoch if unit.startswith("epoch") else 1)
    else:
        steps = math.ceil(total * asked)
    return min(steps, total - 1)


def plateaus(losses: Sequence[float], *, patience: int) -> int:
    """Return how often the val losses so far have not fallen for `patience` epochs.

    As torch's ReduceLROnPlateau counts, with `patience` the epochs without a lower loss that lead to a drop.
    """
    lowest, waited, drops = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - LEAST_GAIN):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited >= patience:
            drops, waited = drops + 1, 0
    return drops


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _step(moment: Moment, optim: OptimSection) -> float:
    return float(optim.drop ** (moment.done // max(1, math.ceil(optim.drop_every * moment.steps))))


SCHEDULES: dict[str, Schedule] = {
    # SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts
    "cosine": Schedule(lambda moment, _: 0.5 * (1 + math.cos(math.pi * moment.done / moment.steps))),
    "constant": Schedule(lambda *_: 1.0),
    "step": Schedule(_step),
    "polynomial": Schedule(lambda moment, optim: float((1 - moment.done / moment.steps) ** optim.power)),
    # Smith 2018, arXiv:1803.09820, as torch's OneCycleLR has it
    "one-cycle": Schedule(
        lambda moment, _: _anneal(1, CYCLE_END, (moment.done + 1) / moment.steps),
        rise=lambda step, rise: _anneal(CYCLE_START, 1, step / max(rise - 1, 1)),
        warmup=0.3,
    ),
    "plateau": Schedule(lambda moment, optim: float(optim.drop**moment.drops)),
}
