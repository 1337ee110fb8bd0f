"""compare.html: one file that opens offline and shows how strategies learn, and which is better beyond chance.

Curves are inline SVG. A strategy that is solved in one go is a point, with a dotted line on from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.report.page import render
from finetune.report.standings import Curve
from finetune.strategy.strategies import is_pretrained
from finetune.tasks import guess_loss

# Told apart by the colour-blind, and on white and black. Source: Okabe & Ito 2008, the yellow and the black left out.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7f7f7f", "#8c6bb1")
WIDTH, HEIGHT = 380, 220  # the area inside the axes, in units of the image
LOG_FROM = 20  # ratio to the quickest time from which on the axis of seconds is logarithmic
LARGEST_LOSS = 1.5  # ratio to the loss of guessing beyond which a curve leaves the image

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One run in a panel: its curve, and where the delivered epoch is."""

    points: str
    delivered: Point
    colour: str
    is_dashed: bool
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One image: its lines in its own units, and the marks on its axes as (place, text)."""

    title: str
    across: str
    lines: tuple[Line, ...]
    x_marks: tuple[tuple[float, str], ...]
    y_marks: tuple[tuple[float, str], ...]


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page; `content` holds title, data, the comparison, and the names of its runs."""
    labels = list(dict.fromkeys(label for _, label, _ in content["runs"]))
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(labels)}
    shown = panels(
        content["comparison"].standings, colours, guess_loss=guess_loss(content["task"], content["num_classes"])
    )
    page = {**content, "colours": colours, "panels": shown}
    render(path, "compare.html.j2", {**page, "width": WIDTH, "height": HEIGHT})


def panels(standings: Sequence[Any], colours: Mapping[str, str], *, guess_loss: float) -> tuple[Panel, ...]:
    """Return the score on val and val loss, each over epochs and over seconds."""
    if not standings:
        return ()
    return tuple(
        _panel(standings, colours, x=x, y=y, most=most)
        for y, most in (("score", math.inf), ("val_loss", LARGEST_LOSS * guess_loss))
        for x in ("epoch", "seconds")
    )


def marks(low: float, high: float, *, most: int = 6) -> tuple[float, ...]:
    """Return at most `most` round numbers from low to high, a step of 1, 2 or 5 times a power of ten apart."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(place * step, 10) for place in range(first, math.floor(high / step + 1e-9) + 1))


def _panel(standings: Sequence[Any], colours: Mapping[str, str], *, x: str, y: str, most: float) -> Panel:
    curves = [
        (standing, curve, epoch)
        for standing in standings
        for curve, epoch in zip(standing.curves, standing.delivered_epochs, strict=True)
    ]
    ends = [getattr(curve[-1], x) for _, curve, _ in curves]
    values = [min(getattr(row, y), most) for _, curve, _ in curves for row in curve]
    is_log = x == "seconds" and max(ends) > LOG_FROM * max(min(ends), 0.05)
    firsts = min(getattr(curve[0], x) for _, curve, _ in curves)
    left, right = (max(0.1, min(firsts, min(ends)) * 0.8) if is_log else 0.0), max(*ends, 1.0) * 1.02
    low, high = _range(values, is_share=y == "score" and min(values) >= 0)

    def across(value: float) -> float:
        value = max(value, left)
        share = math.log(value / left) / math.log(right / left) if is_log else (value - left) / (right - left)
        return round(share * WIDTH, 1)

    def up(value: float) -> float:
        return round(HEIGHT - (min(value, high) - low) / (high - low) * HEIGHT, 1)

    lines = tuple(
        _line(standing, curve, epoch, x, y, across, up, colours[standing.label]) for standing, curve, epoch in curves
    )
    ticks = _log_marks(left, right) if is_log else marks(left, right)
    if x == "epoch":
        ticks = tuple(tick for tick in ticks if tick == int(tick))
    name = f"val {standings[0].metric}" if y == "score" else "val loss"
    over = {"epoch": "epochs", "seconds": "seconds"}[x]
    return Panel(
        title=f"{name} over {over}",
        across=f"{over}, on a logarithmic scale" if is_log else over,
        lines=lines,
        x_marks=tuple((across(tick), f"{tick:g}") for tick in ticks),
        y_marks=tuple((up(tick), f"{tick:g}") for tick in marks(low, high)),
    )


def _line(standing: Any, curve: Curve, epoch: int, x: str, y: str, across: Any, up: Any, colour: str) -> Line:
    places = [(across(getattr(row, x)), up(getattr(row, y))) for row in curve]
    delivered = next(place for place, row in zip(places, curve, strict=True) if row.epoch == epoch)
    if len(places) == 1:  # solved in one go: its level, on to the end
        places.append((float(WIDTH), places[0][1]))
    points = " ".join(f"{a:g},{b:g}" for a, b in places)
    return Line(points, delivered, colour, len(curve) == 1 or not is_pretrained(standing.strategy), standing.label)


def _range(values: Sequence[float], *, is_share: bool) -> Point:
    low, high = min(values), max(values)
    room = max(0.05 * (high - low), 0.01)
    return (max(0.0, low - room), min(1.0, high + room)) if is_share else (min(low, max(0.0, low - room)), high + room)


def _log_marks(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = tuple(factor * 10.0**power for power in powers for factor in (1, 2, 5))
    there = tuple(value for value in every if low <= value <= high)
    return there if len(there) <= 8 else tuple(value for value in there if math.log10(value) % 1 < 1e-9)
