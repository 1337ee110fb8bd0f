"""Finished runs side by side, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.cli import tables
from finetune.cli.terminal import escape
from finetune.types import Interval
from finetune.wording import counted

if TYPE_CHECKING:
    from finetune.report.side_by_side import SideBySide
    from finetune.report.standings import Standing

Rows = Sequence[Sequence[str]]


def show_side_by_side(found: SideBySide, *, as_markdown: bool = False) -> None:
    """Print what differs in the recipes of runs, their figures, and who is better on the same images."""
    console, write = tables.out(), _markdown if as_markdown else _table
    order = [found.labels.index(standing.label) for standing in found.standings]
    names = [found.labels[place] for place in order]
    console.print()
    if found.differences:
        keys = [[key, *(_value(values[place]) for place in order)] for key, values in sorted(found.differences.items())]
        write(["recipe", *names], keys, words=names)
    else:
        console.print("the recipes are the same, key by key")
    console.print()
    judged = ["images", *(f"{found.num_judged[place]:,} {found.splits[place]}" for place in order)]
    figures = [[name, *(_figure(values[place]) for place in order)] for name, values in found.metrics.items()]
    write(["metric", *names], [judged, *figures])
    console.print()
    metric = found.standings[0].metric
    write(["run", metric, "behind the best", "params", "epoch", "time"], [_standing(one) for one in found.standings])
    console.print(
        f"\n{counted(found.num_images, 'image')} on which all were judged; in brackets: 95 % intervals, behind the"
        " best: image by image"
    )
    for line in found.said:
        console.print(escape(line))


def _table(headers: Sequence[str], rows: Rows, *, words: Sequence[str] = ()) -> None:
    tables.out().print(tables.table(headers, rows, words=words, drop=["time", "epoch", "params"]))


def _markdown(headers: Sequence[str], rows: Rows, *, words: Sequence[str] = ()) -> None:
    """Print a table as Markdown; numbers stand at the right."""
    bars = ["---" if place == 0 or name in words else "---:" for place, name in enumerate(headers)]
    for cells in (headers, bars, *rows):
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")


def _standing(one: Standing) -> list[str]:
    epochs = sorted(set(one.delivered_epochs))
    return [
        one.label,
        tables.bracketed(one.score),
        tables.bracketed(one.difference, digits=3) if one.difference else "",
        f"{one.num_trained:,}",
        str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}",
        tables.duration(one.seconds),
    ]


def _figure(figure: dict[str, float] | None) -> str:
    return tables.bracketed(Interval(**figure)) if figure else ""


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
