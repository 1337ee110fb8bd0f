"""`sample` and `doctor`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import tables
from finetune.cli.options import JsonOption, with_interrupt
from finetune.cli.terminal import escape


@with_interrupt
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    per_class: Annotated[int, typer.Option("--per-class", metavar="N", min=1, help="Pictures of each class.")] = 60,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Other seed, other pictures.")] = 0,
) -> None:
    """Draw a small labelled set of pictures, to try the tool with no data at hand."""
    from finetune.data.sample import write_sample

    files = write_sample(folder, per_class=per_class, seed=seed)
    classes = len({file.parent for file in files})
    typer.echo(f"{len(files)} pictures in {classes} classes: {folder}")
    typer.echo(f"next: finetune run {shlex.quote(str(folder))}")


@with_interrupt
def doctor(json_: JsonOption = False) -> None:
    """Show versions, devices, folders, and whether the model hub can be reached."""
    from finetune.workflow.doctor import doctor as examine

    found = examine()
    if json_:
        tables.print_json(found)
        return
    console = tables.out()
    lines = {"python": found["python"], "platform": found["platform"], **found["packages"], **found["devices"]}
    console.print(tables.table(["", "value"], list(lines.items()), words=["value"], has_header=False))
    console.print(f"\ncache: {escape(str(found['cache']))}\nhub cache: {escape(str(found['hub_cache']))}")
    reached = "reached" if found["hub_is_reachable"] else "not reached"
    console.print(f"model hub: {reached}\nbackbone auto: {found['auto_backbone']}")
    if not found["hub_is_reachable"]:
        from finetune.backbone.automatic import WAYS_OUT

        console.print(escape(f"Without the hub: {WAYS_OUT}."))
