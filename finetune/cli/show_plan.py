"""A plan in the terminal: the evidence, the phases with their layer groups, what they cost, the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.cli import tables
from finetune.cli.evidence import show_evidence
from finetune.cli.grid import Grid
from finetune.cli.tables import duration, table
from finetune.cli.terminal import Console, escape
from finetune.wording import amount, counted

PARTS = {
    "weights": "weights and statistics",
    "averages": "the optimiser's averages, copies",
    "gradients": "gradients of weights",
    "inputs": "images or features",
    "kept": "kept for the backward pass",
    "passing": "on the way",
}

if TYPE_CHECKING:
    from finetune.backbone.layers import LayerTable
    from finetune.prepare.costs import Cost
    from finetune.prepare.device_memory import DeviceMemory
    from finetune.types import GroupPlan, LayerGroup, Phase
    from finetune.workflow.plan import Plan


def show_plan(plan: Plan) -> None:
    """Print the layer groups of every phase, and the layers if they were asked for."""
    console = tables.out()
    size = plan.image_size
    console.print(
        f"[bold]{escape(plan.strategy)}[/bold] on {escape(plan.backbone)}, {size[0]}x{size[1]} pixels,"
        f" {'a number' if plan.task == 'regress' else f'{plan.num_classes} classes'},"
        f" {plan.num_parameters:,} parameters"
    )
    for note in plan.notes:
        console.print(f"note: {escape(note)}")
    if plan.evidence is not None and plan.verdict is not None:
        show_evidence(console, plan.evidence, plan.verdict)
    for index, phase in enumerate(plan.phases, 1):
        console.print()
        console.print(_phase_table(plan, phase, index))
        if plan.costs:
            _show_cost(console, plan.costs[index - 1])
        if held := [held for held in plan.memory if held.phase == phase.name]:
            _show_memory(console, held)
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
            f"run once per image: {cost.cut.trunk_share:.0%} of the forward pass; cached: {shapes},"
            f" {cost.cut.bytes_per_image / 1024:,.1f} KiB per image and view, {views}: {amount(cost.cut.cache_bytes)};"
            f" saves {cost.cut.saved_share:.0%} of the work"
        )
    if cost.memory_bytes is not None:
        time = "" if cost.seconds is None else f"; about {duration(cost.seconds)} on this machine"
        console.print(f"memory for a step of {counted(cost.batch, 'image')}: about {amount(cost.memory_bytes)}{time}")


def _show_memory(console: Console, held: Sequence[DeviceMemory]) -> None:
    """Print what a phase holds on a GPU, a column for each precision."""
    first = held[0]
    rows: list[tuple[str, ...]] = []
    if first.step is not None:
        steps = [part.step for part in held if part.step is not None]
        rows += [(words, *(amount(getattr(step, name)) for step in steps)) for name, words in PARTS.items()]
        rows.append((f"in a step of {counted(first.batch, 'image')}", *(amount(step.total) for step in steps)))
    if first.passing is not None:
        passes = [amount(part.passing.total) for part in held if part.passing is not None]
        rows.append((f"in a pass of the frozen layers, {first.pass_batch} images at once", *passes))
    if first.within is not None and first.step is not None:
        fits = ["none" if part.largest == 0 else f"{part.largest:,}" for part in held]
        rows.append((f"images at once within {amount(first.within)}, a tenth left free", *fits))
    headers = ["peak on a GPU", *(part.precision for part in held)]
    console.print(table(headers, rows))


def _total(plan: Plan) -> str:
    known = [cost.seconds for cost in plan.costs if cost.seconds is not None]
    cached = sum(cost.cut.cache_bytes for cost in plan.costs if cost.cut)
    text = f"for {plan.num_images:,} images: {amount(cached) if cached else 'nothing'} in the feature cache"
    if len(known) < len(plan.costs):
        return text
    return f"{text}, about {duration(sum(known))} of computing (decoding not counted)"


def _phase_table(plan: Plan, phase: Phase, index: int) -> Grid:
    how = (
        "solved to convergence"
        if phase.solver == "lbfgs"
        else f"{counted(phase.epochs, 'epoch')}, peak lr {phase.lr:g}"
    )
    rows: list[tuple[str, ...]] = []
    for group in plan.groups:
        item = phase.plan[group.name]
        rows.append(
            (
                group.name,
                f"{group.num_parameters:,}",
                _state(group, item),
                "" if item.is_frozen or phase.solver == "lbfgs" else f"{phase.lr * item.lr_scale:.2g}",
                "new" if item.is_reinitialised else "kept",
                item.norm_statistics,
            )
        )
    trainable = plan.num_trainable(phase.plan)
    rows.append(("total", f"{plan.num_parameters:,}", f"{trainable:,} trained", "", "", ""))
    columns = ["layer group", "parameters", "state", "lr", "values", "norm statistics"]
    title = f"phase {index}/{len(plan.phases)} {phase.name}: {how}"
    return table(columns, rows, title=title, drop=["values", "lr"])


def _state(group: LayerGroup, item: GroupPlan) -> str:
    """Return what is trained of a layer group, and how much if that is not all of it."""
    whole = {"none": "frozen", "all": "trained"}
    return whole.get(item.trains) or f"{item.trains}: {group.num_trained(item):,}"


def _show_layers(console: Console, layers: LayerTable) -> None:
    rows = [
        (row.name, row.type, "x".join(map(str, shape)), f"{row.num_activations:,}", f"{row.num_parameters:,}",
         f"{row.num_activations * 4 / 1e6:.2f}", row.receptive_field or "")
        for row, shape in zip(layers.rows, layers.shapes_channels_last(), strict=True)
    ]  # fmt: skip
    headers = ["layer", "type", "output", "activations", "parameters", "MB", "sees"]
    console.print(table(headers, rows, drop=["MB", "type", "sees"]))
    console.print(
        f"\nactivations of one image, forward: {layers.num_activations:,} values,"
        f" {layers.activation_bytes() / 1e6:.1f} MB in float32\n"
        f"counted: input, convolutions, pools, fully connected; {layers.num_activations_all:,} with norms too\n"
        "output: height x width x channels; sees: receptive field in pixels"
    )
