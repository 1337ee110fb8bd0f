"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math


def lr_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Yield the share of the peak learning rate at a step (0 is the first of `total`).

    Linear rise over the first `warmup` share of the steps, then a half cosine to zero, or constant.
    Source: SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983 (without restarts).
    """
    rise = math.ceil(total * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))
