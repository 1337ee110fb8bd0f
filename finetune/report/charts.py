"""Numbers as coordinates of inline SVGs: curves over epochs with axes, a reliability diagram, a curve of shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune.types import EpochLine

WIDTH, HEIGHT = 560, 170  # pixels inside the axes
TICKS = 5  # at most, on an axis of values
EPOCH_TICKS = 10
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, and what stands beside it."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: its name and the points of an SVG polyline, skipping missing values."""

    name: str
    points: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over a common axis; `marks` are labelled vertical lines, such as the delivered epoch."""

    title: str
    lines: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    x_name: str
    marks: tuple[Tick, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT


def over_epochs(history: Sequence[EpochLine], *, score: str, delivered: int) -> list[Chart]:
    """Return the curves of loss and score, train and val; none for fewer than two epochs."""
    if len(history) < 2:
        return []
    series: dict[str, Mapping[str, Values]] = {
        "loss": {"train": [row.train_loss for row in history], "val": [row.val_loss for row in history]},
        score: {"train": [row.train_top1 for row in history], "val": [row.score for row in history]},
    }
    count = len(history)
    marks = [Tick(_across(place - 0.5, count), phase) for place, phase in _starts(history)]
    marks.append(Tick(_across(delivered - 1, count), f"delivered: epoch {delivered}"))
    step = max(1, math.ceil(count / EPOCH_TICKS))
    epochs = tuple(Tick(_across(place, count), str(place + 1)) for place in range(0, count, step))
    charts = []
    for title, named in series.items():
        there = [value for values in named.values() for value in values if value is not None]
        if not there:
            continue
        low, high, ticks = scale(min(there), max(there))
        lines = tuple(
            _line(name, [(_across(x, count), _up(y, low, high)) for x, y in enumerate(values) if y is not None])
            for name, values in named.items()
            if any(value is not None for value in values)
        )
        up = tuple(Tick(_up(value, low, high), f"{value:g}") for value in ticks)
        charts.append(Chart(title, lines, epochs, up, "epoch", tuple(marks)))
    return charts


def of_shares(title: str, pairs: Sequence[tuple[float, float]], *, x_name: str) -> Chart:
    """Return a curve of shares of one thing over shares of another, both between 0 and 1."""
    low, high, ticks = scale(min(y for _, y in pairs), 1.0)
    points = [(round(x * WIDTH, 1), _up(y, low, high)) for x, y in pairs]
    across = tuple(Tick(round(share * WIDTH, 1), f"{share:g}") for share in (0, 0.2, 0.4, 0.6, 0.8, 1))
    up = tuple(Tick(_up(value, low, high), f"{value:g}") for value in ticks)
    return Chart(title, (_line(title, points),), across, up, x_name)


def scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return an axis that holds two values: its ends, and at most five round numbers on it, ends included."""
    span = high - low
    if span <= max(1e-9 * max(abs(low), abs(high)), 1e-30) or not math.isfinite(span):
        low, high = (low - 0.5, low + 0.5) if math.isfinite(low) else (0.0, 1.0)
        span = 1.0
    rough = span / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < TICKS:
            break
    ticks = [float(f"{place * step:.12g}") for place in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def reliability(confidence: Sequence[float], hits: Sequence[bool], *, bins: int = 10) -> list[dict[str, Any]]:
    """Return mean confidence, number right and number of images for every tenth of confidence that occurs."""
    rows = []
    for place in range(bins):
        inside = [
            (share, hit)
            for share, hit in zip(confidence, hits, strict=True)
            if min(int(share * bins), bins - 1) == place
        ]
        if inside:
            mean = sum(share for share, _ in inside) / len(inside)
            right = sum(hit for _, hit in inside) / len(inside)
            rows.append({"confidence": mean, "right": right, "count": len(inside)})
    return rows


def _starts(history: Sequence[EpochLine]) -> list[tuple[int, str]]:
    """Return where each phase but the first begins, and its name."""
    pairs = enumerate(pairwise(history), 1)
    return [(place, after.phase) for place, (row, after) in pairs if row.phase != after.phase]


def _line(name: str, points: list[tuple[float, float]]) -> Curve:
    return Curve(name, " ".join(f"{x:g},{y:g}" for x, y in points), tuple(points))


def _across(place: float, count: int) -> float:
    return round(place * WIDTH / max(count - 1, 1), 1)


def _up(value: float, low: float, high: float) -> float:
    return round(HEIGHT * (1 - (value - low) / (high - low)), 1)
