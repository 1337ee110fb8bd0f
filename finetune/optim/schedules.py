"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no state of them.

To add one: a row in `SCHEDULES`, its name in `settings.Schedule`, a line in docs/strategies.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# The share of the peak that is left after some of the steps behind the warm-up.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    # SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts
    "cosine": lambda done, steps: 0.5 * (1 + math.cos(math.pi * done / steps)),
    "constant": lambda done, steps: 1.0,
}


def lr_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Return the share of the peak learning rate at a step (0 is the first of `total`).

    A linear rise over the first `warmup` share of the steps, then the schedule over the rest.
    """
    rise = math.ceil(total * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    return SCHEDULES[schedule](step - rise, max(total - rise, 1))
