"""`backbones`, `backbones show|fetch`: which networks there are, how large and how good, and their weights.

`finetune backbones FILTER` lists: what is not a command of the group is an argument of its command `ls`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import rank, tables
from finetune.cli.completion import complete_backbone, complete_family, complete_licence
from finetune.cli.help import LIST, App, ListGroup, examples
from finetune.cli.options import JsonOption, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape

if TYPE_CHECKING:
    from finetune.backbone.catalogue import CatalogueEntry

SCREENFUL = 30
EXAMPLES = examples(
    "backbones resnet --max-params 30",
    "backbones 'vit*224' --min-top1 80 --sort gmacs",
    "backbones --plot backbones.svg",
)


class SortName(StrEnum):
    """The orders of the list."""

    top1 = "top1"
    gmacs = "gmacs"
    params = "params"
    name = "name"


app = App(
    cls=ListGroup,
    help="List pretrained networks by size, compute and accuracy. Without a filter: those that no other beats.",
    epilog=EXAMPLES,
)


@app.command(LIST, hidden=True, epilog=EXAMPLES)
@with_interrupt
def list_them(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="FILTER",
            help="Part of a name, or a pattern ('resnet*d', 'resnet50.*').",
            autocompletion=complete_backbone,
            show_default=False,
        ),
    ] = "",
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Only this family: resnet, vision_transformer, ...",
            autocompletion=complete_family,
        ),
    ] = None,
    max_params: Annotated[
        float | None, typer.Option("--max-params", metavar="M", help="At most this many million parameters.")
    ] = None,
    max_gmacs: Annotated[
        float | None,
        typer.Option("--max-gmacs", metavar="G", help="At most this many billion multiply-adds for an image."),
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option("--min-top1", metavar="PERCENT", help="At least this top-1 on ImageNet-1k.")
    ] = None,
    licence: Annotated[
        list[str] | None,
        typer.Option(
            "--licence",
            metavar="NAME",
            help="Only weights under this licence; repeatable.",
            autocompletion=complete_licence,
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only weights that are on this machine.")] = False,
    front: Annotated[bool, typer.Option("--front", help="Only those that no other beats at their compute.")] = False,
    sort: Annotated[
        SortName | None,
        typer.Option(
            "--sort",
            metavar="ORDER",
            help="top1, gmacs, params or name. Default: top1, for --front gmacs.",
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help=f"Everything that is found, not only the first {SCREENFUL}.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw accuracy against compute: .svg or .png.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List pretrained networks by size, compute and accuracy."""
    from finetune.workflow import backbones

    wish = backbones.Wish(family, max_params, max_gmacs, min_top1, tuple(licence or ()), offline)
    front = front or not (pattern or all_ or json_ or sort or wish != backbones.Wish())
    entries = backbones.list_backbones(pattern, wish, is_front=front, sort=sort.value if sort else None)
    if plot is not None:
        backbones.plot_backbones(plot, pattern, wish)
    if json_:
        tables.print_json([backbones.facts(entry) for entry in entries])
    elif plot is not None:
        typer.echo(plot)
    else:
        order = ORDERS[sort or (SortName.gmacs if front else SortName.top1)]
        show_list(entries, order=order, is_front=front, most=None if all_ or front else SCREENFUL)


@app.command(epilog=examples("backbones show resnet18", "backbones show convnext_nano.in12k_ft_in1k"))
@with_interrupt
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="With a tag or without.", autocompletion=complete_backbone)
    ],
    json_: JsonOption = False,
) -> None:
    """Show everything that is known about one network, and how to use it."""
    from finetune.workflow.backbones import show_backbone

    facts = show_backbone(name)
    if json_:
        tables.print_json(facts)
    else:
        show_one(facts)


@app.command(
    draws=True, epilog=examples("backbones fetch resnet18 --to w", "backbones fetch resnet18 convnext_nano --to w")
)
@with_interrupt
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="With a tag or without.", autocompletion=complete_backbone),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Each becomes the folder DIR/NAME.")],
    json_: JsonOption = False,
) -> None:
    """Write networks with their weights as folders, for --weights and machines without a network."""
    from finetune.workflow.backbones import fetch_backbones

    with watching(is_quiet=json_) as on_event:
        done = fetch_backbones(names, to, on_event=on_event)
    if json_:
        tables.print_json(
            [{"name": folder.name, "path": str(folder.path), "was_there": folder.was_there} for folder in done]
        )
        return
    for folder in done:
        typer.echo(f"{folder.path}{' (already there)' if folder.was_there else ''}")
    typer.echo(f"next: finetune run DATA --weights {shlex.quote(str(done[0].path))}")


app.command(draws=True, epilog=rank.EXAMPLES)(rank.rank)

ORDERS = {
    SortName.top1: "the most accurate first",
    SortName.gmacs: "the least compute first",
    SortName.params: "the smallest first",
    SortName.name: "by name",
}


def show_list(entries: Sequence[CatalogueEntry], *, order: str, is_front: bool, most: int | None) -> None:
    """Print one line per network, their order, and how many more there are."""
    from finetune.backbone.catalogue import networks
    from finetune.workflow.backbones import facts

    console = tables.out()
    if not entries:
        console.print("no network of that name is within all limits")
        return
    rows = [_row(facts(entry)) for entry in entries[:most]]
    headers = ["backbone", "params", "GMACs", "px", "top-1", "groups", "here"]
    console.print(tables.table(headers, rows, drop=["groups", "px"]))
    console.print("\ntop-1: ImageNet-1k, percent; groups: layer groups; here: weights on this machine")
    if is_front:
        console.print(f"{len(rows)} that no other beats in top-1 at their compute, {order}")
        console.print(f"more: FILTER, or --all for all {len(networks()):,}")
    elif len(rows) < len(entries):
        console.print(f"{len(rows)} of {len(entries):,}, {order}; --all shows the rest")
    else:
        console.print(f"{len(rows)}, {order}")


def show_one(facts: dict[str, Any]) -> None:
    """Print one backbone: its facts, its weights, how to use it, where the facts come from."""
    console = tables.out()
    console.print(tables.table(["", "value"], list(_lines(facts).items()), words=["value"], has_header=False))
    if len(facts["all_weights"]) > 1:
        rows = [
            (each["weights"], *(_row(each)[column] for column in (3, 4, 6)), each["licence"] or "not stated")
            for each in facts["all_weights"]
        ]
        headers = ["all its weights, the default first", "px", "top-1", "here", "licence"]
        console.print()
        console.print(tables.table(headers, rows, words=["licence"], drop=["here"]))
    console.print(f"\nsize and compute: {escape(facts['sources']['networks'])}")
    if facts["imagenet_top1_percent"] is not None:
        console.print(f"top-1: {escape(facts['sources']['top1'])}")


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    """Return the known facts of one backbone, one per line."""
    from finetune.backbone.catalogue import fold

    name, top1, size = facts["name"], facts["imagenet_top1_percent"], _pixels(facts["image_size"])
    compute = "" if facts["gmacs"] is None else f", {_gmacs(facts['gmacs'])} GMACs"
    head = f", {facts['num_head_parameters']:,} of them in the head" if facts["num_head_parameters"] else ", no head"
    if facts["weights"] is None:
        weights = {
            "weights": "none are published",
            "use": f"finetune run --data DATA --backbone {name} --no-pretrained",
        }
    else:
        weights = {
            "weights": f"{facts['weights']}, {facts['num_classes']:,} classes".removesuffix(", 0 classes"),
            "licence": facts["licence"] or "not stated",
            "from": facts["source"],
            "here": facts["place"] or f"no; `finetune backbones fetch {name} --to DIR` makes a folder for --weights",
            "use": f"finetune run --data DATA --backbone {name}",
        }
    if "head" not in facts["layer_groups"]:
        weights["use"] = "none: it has no place for a classifier"
    return {
        "name": name,
        "family": f"{facts['family']} ({facts['origin']})",
        "input": f"{size} pixels{compute}",
        "parameters": f"{facts['num_parameters']:,}{head}",
        **({} if top1 is None else {"top-1": f"{top1:.1f} % on ImageNet-1k val at {size} pixels"}),
        "groups": f"{facts['num_layer_groups']}: {fold(facts['layer_groups'])}",
        **weights,
        "look closer": f"finetune plan --backbone {name} --strategy full --layers",
    }


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    top1 = fact["imagenet_top1_percent"]
    return (
        fact["name"],
        f"{fact['num_parameters'] / 1e6:.1f}M",
        _gmacs(fact["gmacs"]),
        _pixels(fact["image_size"]),
        "" if top1 is None else f"{top1:.1f}",
        f"{fact['num_layer_groups']}",
        "yes" if fact["is_on_this_machine"] else "",
    )


def _gmacs(gmacs: float | None) -> str:
    return "" if gmacs is None else f"{gmacs:.0f}" if gmacs >= 100 else f"{gmacs:.2f}"


def _pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"
