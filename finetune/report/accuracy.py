"""Accuracy against compute of backbones, as an image: those on the front, numbered, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.backbone.catalogue import CatalogueEntry, front
from finetune.whole import whole_file

SIZE, SIDE = (11.0, 6.5), 0.3  # inches; share of the list of names
DOT, LINE = "#9aa5b1", "#c2410c"
NARROW = 20  # times between the ends of the compute axis: below it there is room for more than powers of ten
NEAR = (0.012, 0.022)  # shares of the width and height within which two numbers would run into each other


def draw(entries: Sequence[CatalogueEntry], file: Path) -> None:
    """Draw the entries with known top-1 and compute; .svg or .png by the suffix, the same bytes every time."""
    figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
    axes, side = figure.subplots(1, 2, width_ratios=(1 - SIDE, SIDE))
    best = front(entries)
    axes.scatter(*_points(entries), s=9, color=DOT, linewidths=0)
    axes.step(*_points(best), where="post", color=LINE, linewidth=1, marker="o", markersize=3.5)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if right / left < NARROW else "")
    axes.set_xlabel("multiply-adds for one image, billions (GMACs)")
    axes.set_ylabel("top-1 on ImageNet-1k val, percent")
    axes.set_title(f"{len(entries):,} sets of weights; on the line: those that no other beats", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    _number(axes, best)
    _list(side, best)
    with matplotlib.rc_context({"svg.hashsalt": "finetune"}):
        kind = file.suffix.lower().removeprefix(".")
        with whole_file(file) as beside:
            figure.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _points(entries: Sequence[CatalogueEntry]) -> tuple[list[float], list[float]]:
    return [entry.gmacs or 0 for entry in entries], [entry.top1 or 0 for entry in entries]


def _number(axes: Axes, best: Sequence[CatalogueEntry]) -> None:
    """Write the numbers beside the points; close ones share a label: 6-8."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    groups: list[list[int]] = []
    for index, (x, y) in enumerate(zip(*_points(best), strict=True)):
        if groups:
            before = best[groups[-1][-1]]
            across = log10(x / (before.gmacs or x)) / log10(right / left)
            if across < NEAR[0] and (y - (before.top1 or y)) / (top - bottom) < NEAR[1]:
                groups[-1].append(index)
                continue
        groups.append([index])
    for group in groups:
        text = f"{group[0] + 1}" if len(group) == 1 else f"{group[0] + 1}-{group[-1] + 1}"
        place = (best[group[0]].gmacs or 0, best[group[-1]].top1 or 0)
        axes.annotate(text, place, xytext=(-3, 4), textcoords="offset points", fontsize=7, ha="right")


def _list(side: Axes, best: Sequence[CatalogueEntry]) -> None:
    lines = [f"{number:>2}  {entry.top1:.1f}  {entry.name}" for number, entry in enumerate(best, 1)]
    side.axis("off")
    side.text(
        0, 1, "\n".join(lines), va="top", family="monospace", fontsize=min(7.0, 300 / max(len(best), 1)),
        linespacing=1.35, transform=side.transAxes,
    )  # fmt: skip
