"""Results as tables and lines, for a terminal or a file."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finetune.cli.grid import Column, Grid
from finetune.cli.terminal import Console, escape, printable
from finetune.data.balance import never_predicted_text
from finetune.inline import bracketed as bracketed
from finetune.tasks import NUM_FIRST
from finetune.train.delivery import TOLD_APART
from finetune.types import Interval
from finetune.wording import as_json, counted, listed

if TYPE_CHECKING:
    from finetune.evaluation.by_class import ClassFigures
    from finetune.evaluation.corruptions import UnderCorruption
    from finetune.runs.single import RunResult
    from finetune.workflow.evaluate import Evaluation

MOST_CONFUSIONS, MOST_BY_CLASS = 5, 12


def out() -> Console:
    """Return the console of results: stdout."""
    return Console()


def print_json(content: Any) -> None:
    """Print one JSON document; escaped where it holds names that are no UTF-8."""
    print(as_json(content, indent=1))


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    words: Collection[str] = (),
    drop: Sequence[str] = (),
    has_header: bool = True,
) -> Grid:
    """Return a table of names in the first column, words in those that `words` names, and values in the others.

    `drop` names the columns that a narrow terminal can do without, the least important first.
    """
    cells = [[printable(str(cell)).replace("\n", "\\n") for cell in row] for row in rows]
    columns = [
        Column(
            header,
            [row[place] for row in cells],
            is_broken=header in words,
            is_left=place == 0 or header in words,
        )
        for place, header in enumerate(headers)
    ]
    return Grid(columns, title=title, drop=drop, has_header=has_header)


def show_result(result: RunResult) -> None:
    """Print what a run leaves and how good it is."""
    console = out()
    names = list(dict.fromkeys(name for values in result.metrics.values() for name in values))[:NUM_FIRST]
    rows = [
        [split, *(bracketed(Interval(**values[name])) for name in names)] for split, values in result.metrics.items()
    ]
    console.print()
    console.print(table(["", *names], rows))
    console.print(f"\n{_meaning(names)}", style="dim")
    if result.num_epochs > 1 and "val" in result.metrics:  # else a refit is delivered
        is_last = result.delivered_epoch == result.num_epochs
        more = f"{TOLD_APART} more val images right"
        if "top1" not in names:
            more = f"a {names[0]} higher by the share of {TOLD_APART} val images"
        why = f"no earlier one had {more}" if is_last else f"it had {more} than later ones"
        console.print(f"\nepoch {result.delivered_epoch} is delivered: {why}")
    console.print(f"\neverything is in [bold]{escape(str(result.folder))}[/bold]")
    left = [("model/", "the weights, as a timm folder"), ("report.html", "reasons and results")]
    left.append(("metrics.json", "these and other metrics"))
    is_exported = (result.folder / "exports" / "model.onnx").is_file()
    if is_exported:
        left.append(("exports/", "model.onnx, proven equal"))
    for name, what in left:
        console.print(f"  {name:<12} {what}")
    if is_exported:
        console.print(f"next: finetune predict {escape(shlex.quote(str(result.folder)))} PHOTOS")
    else:
        console.print(f"next: finetune export {escape(shlex.quote(str(result.folder)))} --format onnx")


def duration(seconds: float) -> str:
    """Return seconds as a person reads them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics, and the classes that are confused most."""
    console = out()
    rows = [(name, f"{v.value:.4f}", f"[{v.low:.3f}, {v.high:.3f}]") for name, v in evaluation.metrics.items()]
    views = "" if evaluation.tta == "none" else f", tta {evaluation.tta}"
    head = f"{evaluation.split}, {counted(evaluation.num_images, 'image')}{views}"
    console.print(table([head, "value", "95 %"], rows))
    console.print(f"\n{_meaning(evaluation.metrics)}", style="dim")
    if evaluation.never_predicted:
        never = never_predicted_text(evaluation.never_predicted, evaluation.split, task=evaluation.task)
        console.print(f"\n{escape(never)}")
    if evaluation.by_class:
        _show_by_class(console, evaluation.by_class)
    pairs = [
        (count, evaluation.classes[true], evaluation.classes[guess])
        for true, guess, count in evaluation.confusions
        if true != guess
    ]
    if pairs:
        worst = sorted(pairs, reverse=True)[:MOST_CONFUSIONS]
        console.print()
        console.print(
            table(
                ["true", "predicted", "images"],
                [(true, guess, count) for count, true, guess in worst],
                words=["predicted"],
            )
        )
    if evaluation.corruption is not None:
        _show_corruption(console, evaluation.corruption)


def _show_corruption(console: Console, found: UnderCorruption) -> None:
    """Print what is reached under corruption: of all kinds together, and of each, the worst first."""
    rows = [("none", *[f"{found.clean:.3f}"] * len(found.severities)), ("all, mean", *_figures(found.means))]
    rows += [(kind, *_figures(values)) for kind, values in sorted(found.by_kind.items(), key=lambda row: sum(row[1]))]
    console.print()
    console.print(table([f"{found.measure} under", *(f"severity {one}" for one in found.severities)], rows))
    lost = [f"{100 * (found.clean - mean):.1f}" for mean in found.means]
    console.print(f"\npoints lost at severity {listed(map(str, found.severities))}: {listed(lost)}", style="dim")


def _figures(values: Sequence[float]) -> list[str]:
    return [_figure(value) for value in values]


def _show_by_class(console: Console, figures: Sequence[ClassFigures]) -> None:
    """Print how well each class is told, the worst first, up to a limit."""
    worst = sorted(figures, key=lambda row: (row.average_precision is None, row.average_precision or 0.0))
    rows = [
        (row.name, f"{row.num_images:,}", _figure(row.average_precision), _figure(row.f1), f"{row.threshold:.3f}")
        for row in worst[:MOST_BY_CLASS]
    ]
    console.print()
    console.print(table(["class", "images", "average precision", "F1", "threshold"], rows, drop=["threshold"]))
    if len(figures) > MOST_BY_CLASS:
        console.print(f"and {len(figures) - MOST_BY_CLASS} that score better; all with --json")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _meaning(names: Collection[str]) -> str:
    """Return what the names of metrics mean, except for the one that every reader knows."""
    from finetune.evaluation.metrics import TASK_METRICS  # imports torch, as what measured them did

    rows = next((rows for rows in TASK_METRICS.values() if set(names) <= rows.keys()), {})
    meant = [f"{name}: {rows[name].meaning}" for name in names if name in rows and name != "top1"]
    return "; ".join((*meant, "in brackets: 95 % intervals"))
