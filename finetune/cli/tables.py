"""Results as tables for a terminal of 80 columns or a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from finetune.cli.terminal import escape

if TYPE_CHECKING:
    from finetune.backbone.layers import LayerTable
    from finetune.types import Phase
    from finetune.workflow.costs import Cost
    from finetune.workflow.evaluate import Evaluation
    from finetune.workflow.plan import Plan
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
    console.print(f"\nbest epoch {result.best_epoch}; everything is in [bold]{escape(str(result.folder))}[/bold]")
    for name, what in (("model/", "timm's folder of the best weights"), ("report.html", "why, and how well")):
        console.print(f"  {name:<12} {what}")
    console.print(f"next: finetune export {escape(str(result.folder))} --format onnx")


def show_plan(plan: Plan) -> None:
    """Print the layer groups of every phase, and the layers where they were asked for."""
    console = out()
    size = plan.image_size
    console.print(
        f"[bold]{escape(plan.strategy)}[/bold] on {escape(plan.backbone)}, {size[0]}x{size[1]} pixels,"
        f" {plan.num_classes} classes, {plan.num_parameters:,} parameters"
    )
    for note in plan.notes:
        console.print(f"note: {escape(note)}")
    if plan.evidence is not None and plan.verdict is not None:
        console.print(f"{escape(plan.verdict.reason)}\n")
        rows = [
            (group, f"{found.value:.3f}", f"[{found.low:.2f}, {found.high:.2f}]", "#" * round(found.value * 30))
            for group, found in plan.evidence.probe.items()
        ]
        made = table(["linear classifier on", "top1", "95 %", ""], rows)
        made.columns[3].justify = "left"
        console.print(made)
    for index, phase in enumerate(plan.phases, 1):
        console.print()
        console.print(_phase_table(plan, phase, index))
        if plan.costs:
            _show_cost(console, plan.costs[index - 1])
    if plan.costs:
        console.print(f"\n{_total(plan)}")
    if plan.layers is not None:
        console.print()
        _show_layers(console, plan.layers)


def _show_cost(console: Console, cost: Cost) -> None:
    if cost.cut is not None:
        shapes = " and ".join("x".join(map(str, shape)) for shape in cost.cut.shapes)
        views = {0: "none", 1: "1 view"}.get(cost.cut.views, f"{cost.cut.views} views")
        console.print(
            f"runs once an image: {cost.cut.trunk_share:.0%} of the forward pass; cached: {shapes},"
            f" {cost.cut.bytes_per_image / 1024:,.1f} KiB an image and view, {views}: {amount(cost.cut.cache_bytes)};"
            f" saves {cost.cut.saved_share:.0%} of the work"
        )
    if cost.memory_bytes is not None:
        time = "" if cost.seconds is None else f"; about {duration(cost.seconds)} on this machine"
        console.print(f"memory of a step of {cost.batch} images: about {amount(cost.memory_bytes)}{time}")


def _total(plan: Plan) -> str:
    known = [cost.seconds for cost in plan.costs if cost.seconds is not None]
    cached = sum(cost.cut.cache_bytes for cost in plan.costs if cost.cut)
    text = f"for {plan.num_images:,} images: {amount(cached) if cached else 'nothing'} in the feature cache"
    if len(known) < len(plan.costs):
        return text
    return f"{text}, about {duration(sum(known))} of computing (decoding not counted)"


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


def _phase_table(plan: Plan, phase: Phase, index: int) -> Table:
    how = "solved to convergence" if phase.solver == "lbfgs" else f"{phase.epochs} epochs, peak lr {phase.lr:g}"
    rows: list[tuple[str, ...]] = []
    for group in plan.groups:
        item = phase.plan[group.name]
        rows.append(
            (
                group.name,
                f"{group.num_parameters:,}",
                "frozen" if item.is_frozen else "trained",
                "" if item.is_frozen or phase.solver == "lbfgs" else f"{phase.lr * item.lr_scale:.2g}",
                "new" if item.is_reinitialised else "kept",
                item.norm_statistics,
            )
        )
    trainable = plan.num_trainable(phase.plan)
    rows.append(("total", f"{plan.num_parameters:,}", f"{trainable:,} trained", "", "", ""))
    columns = ["layer group", "parameters", "state", "lr", "values", "norm statistics"]
    return table(columns, rows, title=f"phase {index}/{len(plan.phases)} {phase.name}: {how}")


def _show_layers(console: Console, layers: LayerTable) -> None:
    rows = [
        (row.name, row.type, "x".join(map(str, shape)), f"{row.num_activations:,}", f"{row.num_parameters:,}",
         f"{row.num_activations * 4 / 1e6:.2f}", row.receptive_field or "")
        for row, shape in zip(layers.rows, layers.shapes_channels_last(), strict=True)
    ]  # fmt: skip
    console.print(table(["layer", "type", "output", "activations", "parameters", "MB", "sees"], rows))
    console.print(
        f"\nactivations of one image, forward: {layers.num_activations:,} values,"
        f" {layers.activation_bytes() / 1e6:.1f} MB in float32\n"
        f"counted: input, convolutions, pools, fully connected; {layers.num_activations_all:,} with norms too\n"
        "output: height x width x channels; sees: receptive field in pixels"
    )


def show_evaluation(found: Evaluation) -> None:
    """Print the metrics, and the classes that are confused most."""
    console = out()
    rows = [(name, f"{v.value:.4f}", f"[{v.low:.3f}, {v.high:.3f}]") for name, v in found.metrics.items()]
    console.print(table([f"{found.split}, {found.num_images} images", "value", "95 %"], rows))
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
