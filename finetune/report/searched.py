"""report.html of a search: the first checks, the effect of each searched value, and all trials.

Letters: a trial is a mapping with study, number, params, state, score, loss, curve and reason, as tune.json has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.report.comparison import marks
from finetune.report.page import render
from finetune.wording import shown_value, trial_place

WIDTH, HEIGHT = 300, 150  # inside the axes, in units of the image
LOG_FROM = 20  # times the least value: from there on an axis is logarithmic
Trial = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial in a panel."""

    x: float
    y: float
    label: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class ValuePanel:
    """The scores of trials over the values of one key, and the marks on the axes as (place, text)."""

    title: str
    dots: tuple[Dot, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    is_log: bool


def write_search(path: Path, content: Mapping[str, Any], trials: Sequence[Trial], *, usual: Trial, best: Trial) -> None:
    """Write the page; `content` holds title, data, score, checks, curves and recipe; of the trials the best first."""
    keys = list(dict.fromkeys(key for one in trials for key in one["params"]))
    whole = max((len(one["curve"]) for one in trials), default=0)
    panels = [panel for key in keys if (panel := value_panel(key, trials, whole=whole)) is not None]
    render(
        path,
        "search.html.j2",
        {
            **content,
            "trials": trials,
            "usual": usual,
            "best": best,
            "keys": keys,
            "rows": [_row(one) for one in (*trials, usual)],
            "panels": panels,
            "has_log": any(panel.is_log for panel in panels),
            "width": WIDTH,
            "height": HEIGHT,
        },
    )


def value_panel(key: str, trials: Sequence[Trial], *, whole: int) -> ValuePanel | None:
    """Return the scores for the values of a key; None if fewer than two scored trials have one."""
    there = [one for one in trials if one["score"] is not None and key in one["params"]]
    if len(there) < 2:
        return None
    scores = [one["score"] for one in there]
    room = max(0.05 * (max(scores) - min(scores)), 0.01)
    low, high = min(scores) - room, max(scores) + room
    place, across, is_log = _axis([one["params"][key] for one in there])
    dots = tuple(
        Dot(
            place(one["params"][key]),
            round(HEIGHT * (high - one["score"]) / (high - low), 1),
            f"{trial_place(one['study'], one['number'])}: {shown_value(one['params'][key])}, {one['score']:.3f}",
            one["state"] == "done" and len(one["curve"]) == whole,
        )
        for one in there
    )
    up = tuple((round(HEIGHT * (high - tick) / (high - low), 1), f"{tick:g}") for tick in marks(low, high, most=5))
    return ValuePanel(key, dots, across, up, is_log)


def _axis(values: Sequence[Any]) -> tuple[Callable[[Any], float], tuple[tuple[float, str], ...], bool]:
    """Return a function from values to places, the marks, and whether the axis is logarithmic; for words by order."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = sorted({shown_value(value) for value in values})
        step = WIDTH / len(names)
        places = {name: round((number + 0.5) * step, 1) for number, name in enumerate(names)}
        return (lambda value: places[shown_value(value)]), tuple((at, name) for name, at in places.items()), False
    low, high = float(min(values)), float(max(values))
    if low > 0 and high > LOG_FROM * low:
        first, last = math.log10(low), math.log10(high)
        powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)

        def at_log(value: Any) -> float:
            return round(WIDTH * (math.log10(value) - first) / (last - first), 1)

        return at_log, tuple((at_log(10.0**power), f"{10.0**power:g}") for power in powers), True
    span = (high - low) or 1.0

    def at(value: Any) -> float:
        return round(WIDTH * (float(value) - low) / span, 1) if high > low else WIDTH / 2

    ticks = marks(low, high, most=5) if high > low else (low,)
    return at, tuple((at(tick), f"{tick:g}") for tick in ticks), False


def _row(one: Trial) -> dict[str, Any]:
    return {
        "place": trial_place(one["study"], one["number"]),
        "score": "" if one["score"] is None else f"{one['score']:.3f}",
        "loss": "" if one["loss"] is None else f"{one['loss']:.3f}",
        "values": {key: shown_value(value) for key, value in one["params"].items()},
        "epochs": len(one["curve"]),
        "points": _spark(one["curve"]),
        "note": "the unchanged recipe"
        if one["study"] == "usual"
        else one["reason"] or one["state"].replace("done", ""),
    }


def _spark(curve: Sequence[float]) -> str:
    """Return the points of a small curve, 100 wide and 20 high; none for fewer than two epochs."""
    if len(curve) < 2:
        return ""
    low, span = min(curve), (max(curve) - min(curve)) or 1.0
    step = 100 / (len(curve) - 1)
    return " ".join(f"{x * step:.1f},{20 * (1 - (y - low) / span):.1f}" for x, y in enumerate(curve))
