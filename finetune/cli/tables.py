"""Results as tables for a terminal of 80 columns or a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from finetune.cli.terminal import escape
from finetune.data.balance import never_predicted_text
from finetune.train.choice import TOLD_APART

if TYPE_CHECKING:
    from finetune.workflow.evaluate import Evaluation
    from finetune.workflow.run import RunResult

MOST_CONFUSIONS = 5


def out() -> Console:
    """Yield the console of results: stdout; wide enough for a table when it is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 100))


def print_json(content: Any) -> None:
    """Print one JSON document; escaped where it holds names that are no UTF-8."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    print(text if _is_text(text) else json.dumps(content, indent=1))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """Yield a table whose first column is text and whose others are numbers."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def show_result(result: RunResult) -> None:
    """Print what a run leaves and how good it is."""
    console = out()
    names = list(dict.fromkeys(name for values in result.metrics.values() for name in values))
    rows = [
        [split, *(f"{v[name]['value']:.3f} [{v[name]['low']:.2f}, {v[name]['high']:.2f}]" for name in names)]
        for split, v in result.metrics.items()
    ]
    console.print()
    console.print(table(["", *names], rows))
    if result.num_epochs > 1 and "val" in result.metrics:  # else a refit is delivered
        is_last = result.delivered_epoch == result.num_epochs
        what = "no earlier one was" if is_last else "the best before was"
        why = f"{what} {TOLD_APART} val images better" + ("" if is_last else " than later ones")
        console.print(f"\nepoch {result.delivered_epoch} is delivered: {why}")
    console.print(f"\neverything is in [bold]{escape(str(result.folder))}[/bold]")
    for name, what in (("model/", "timm's folder of its weights"), ("report.html", "why, and how well")):
        console.print(f"  {name:<12} {what}")
    console.print(f"next: finetune export {escape(str(result.folder))} --format onnx")


def amount(num_bytes: float) -> str:
    """Yield bytes as a person reads them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1024:,.1f} KiB"


def duration(seconds: float) -> str:
    """Yield seconds as a person reads them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_evaluation(found: Evaluation) -> None:
    """Print the metrics, and the classes that are confused most."""
    console = out()
    rows = [(name, f"{v.value:.4f}", f"[{v.low:.3f}, {v.high:.3f}]") for name, v in found.metrics.items()]
    console.print(table([f"{found.split}, {found.num_images} images", "value", "95 %"], rows))
    if found.never_predicted:
        console.print(f"\n{escape(never_predicted_text(found.never_predicted, found.split))}")
    pairs = [
        (count, found.classes[true], found.classes[guess])
        for true, row in enumerate(found.confusion)
        for guess, count in enumerate(row)
        if count and true != guess
    ]
    if pairs:
        worst = sorted(pairs, reverse=True)[:MOST_CONFUSIONS]
        console.print()
        console.print(table(["is", "taken for", "images"], [(true, guess, count) for count, true, guess in worst]))
