"""The curve of a learning-rate range test as an SVG, with the suggested rates."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from finetune.optim.range_curve import RangeCurve
from finetune.whole import whole_file

SIZE = (8.0, 4.5)  # inches
DOT, LINE, MARKS = "#9aa5b1", "#2f6fc4", {"valley": "#c2410c", "steepest": "#2e8b57"}


def draw(curve: RangeCurve, file: Path, *, title: str, usual: float) -> None:
    """Draw losses over rates; the same bytes every time. `usual` is the rate that the strategy takes by itself."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.scatter(curve.rates, curve.losses, s=8, color=DOT, linewidths=0, label="each step")
    axes.plot(curve.rates, curve.smoothed, color=LINE, linewidth=1.5, label="smoothed")
    for name, colour in MARKS.items():
        rate = getattr(curve, name)
        if rate is not None:
            axes.axvline(rate, color=colour, linewidth=1, label=f"{name}: {rate:.2g}")
    axes.axvline(usual, color=DOT, linewidth=1, linestyle="dotted", label=f"auto: {usual:.2g}")
    axes.set_xscale("log")
    most = max(curve.smoothed, default=1.0)
    least = min(curve.smoothed, default=0.0)
    axes.set_ylim(least - 0.05 * (most - least) - 1e-9, most + 0.05 * (most - least) + 1e-9)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "finetune"}), whole_file(file) as beside:
        figure.savefig(beside, format="svg", metadata={"Date": None})
