"""The probe accuracy over depth, as coordinates of an inline SVG: one dot with its interval per layer group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT = 560, 150


def depth(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return dots (x, y, low, high, name, value), the line through them, and the height of all stages together."""
    probe = evidence["probe"]
    step = WIDTH / max(len(probe), 1)
    dots = [
        {
            "x": round((at + 0.5) * step, 1),
            "y": _height(interval["value"]),
            "low": _height(interval["low"]),
            "high": _height(interval["high"]),
            "name": name,
            "value": interval["value"],
        }
        for at, (name, interval) in enumerate(probe.items())
    ]
    line = " ".join(f"{dot['x']},{dot['y']}" for dot in dots)
    of_a_guess = evidence.get("chance")
    chance = _height(1 / evidence["size"]["num_classes"] if of_a_guess is None else of_a_guess)
    return {"dots": dots, "line": line, "joint": _height(evidence["joint"]["value"]), "chance": chance}


def _height(share: float) -> float:
    return round(HEIGHT * (1 - share), 1)
