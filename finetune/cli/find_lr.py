"""`finetune find-lr`: a learning-rate range test, drawn in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, RecipeOption, base_recipe, recipe_options, set_once
from finetune.cli.screen import watching
from finetune.cli.terminal import escape

if TYPE_CHECKING:
    from finetune.optim.range_curve import RangeCurve
    from finetune.workflow.find_lr import RateSearch

EXAMPLES = examples(
    "find-lr imgs --strategy head-only",
    "find-lr imgs --strategy full --backbone resnet18 --plot rates.svg",
)
WIDTH, HEIGHT = 64, 12  # characters of the plot
LOW, HIGH, STEPS = 1e-6, 10.0, 100


@recipe_options
def find_lr(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    images: Annotated[str | None, typer.Argument(metavar="DATA", help="Short for --data DATA.")] = None,
    recipe: RecipeOption = None,
    low: Annotated[float, typer.Option("--from", metavar="RATE", help="The lowest rate.")] = LOW,
    high: Annotated[float, typer.Option("--to", metavar="RATE", help="The highest rate.")] = HIGH,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=8, help="Steps, each at a rate of its own.")
    ] = STEPS,
    plot: Annotated[
        Path | None, typer.Option("--plot", "-o", metavar="FILE.svg", help="Draw the curve into a new file.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Suggest a learning rate from the loss at rising rates; trains nothing."""
    if images is not None:
        set_once(settings, "data", images)
    base = base_recipe(recipe, settings, overrides)
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.find_lr import find_lr as test

        found = test(
            low=low, high=high, steps=steps, plot=plot, recipe=base, overrides=overrides, on_event=on_event, **settings
        )
    if json_:
        tables.print_json(found.to_json())
    else:
        show(found)


def show(found: RateSearch) -> None:
    """Print the curve, the suggestions, and what to do with them."""
    console, curve = tables.out(), found.curve
    console.print()
    for line in plotted(curve):
        console.print(escape(line), soft_wrap=True)
    console.print()
    rows = [
        ("valley", _rate(curve.valley), "two thirds down the longest fall: use this"),
        ("steepest", _rate(curve.steepest), "where the loss falls fastest"),
        ("auto", f"{found.usual:.2g}", f"default of {found.strategy} with {found.optimiser}"),
    ]
    console.print(tables.table(["", "rate", "meaning"], rows, words=["meaning"]))
    if curve.suggested is None:
        console.print("\nthe loss never falls: check the data, the loss, and whether the network learns at all")
        return
    if curve.is_cut:
        console.print("\nthe loss diverged after the last rate shown")
    console.print(f"\nnext: finetune run ... --lr {curve.suggested:.2g}, or --lr range-test, which measures it first")
    if found.plot:
        console.print(f"drawn: [bold]{escape(str(found.plot))}[/bold]")


def plotted(curve: RangeCurve, *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Return a plot of the averaged losses over the logarithm of the rate, as lines of text with marks below."""
    if len(curve.rates) < 2:
        return ["too few finite steps to draw a curve"]
    start, end = math.log10(curve.rates[0]), math.log10(curve.rates[-1])
    least, most = min(curve.smoothed), max(curve.smoothed)
    grid = [[" "] * width for _ in range(height)]

    def across(rate: float) -> int:
        return round((math.log10(rate) - start) / (end - start) * (width - 1))

    for rate, loss in zip(curve.rates, curve.smoothed, strict=True):
        up = round((loss - least) / (most - least or 1.0) * (height - 1))
        grid[height - 1 - up][across(rate)] = "•"
    labels = {0: f"{most:.3g}", height - 1: f"{least:.3g}"}
    side = max(map(len, labels.values()))
    lines = [f"{labels.get(row, ''):>{side}} │{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    lines.append(f"{'':>{side}} └{'─' * width}")
    decades = range(math.ceil(start), math.floor(end) + 1)
    lines.append(f"{'':>{side}}  " + _marked([(across(10.0**ten), f"1e{ten:+03}") for ten in decades], width))
    suggested = {"valley": curve.valley, "steepest": curve.steepest}
    for name, at in suggested.items():
        if at is not None:
            lines.append(f"{'':>{side}}  " + " " * across(at) + f"▲ {name} {at:.2g}")
    return lines


def _marked(marks: Sequence[tuple[int, str]], width: int) -> str:
    """Return texts at their places on one line; one that would overlap the one before is left out."""
    line = ""
    for place, text in marks:
        if place >= len(line) + bool(line) and place + len(text) <= width + 2:
            line = line.ljust(place) + text
    return line


def _rate(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.2g}"
