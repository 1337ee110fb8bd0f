"""`finetune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli import tables
from finetune.cli.options import JsonOption, with_interrupt
from finetune.cli.terminal import escape
from finetune.wording import counted

if TYPE_CHECKING:
    pass
from finetune.cli.options import RunArgument


class FormatName(StrEnum):
    """The formats of export."""

    onnx = "onnx"
    timm = "timm"


@with_interrupt
def export(
    run: RunArgument,
    format: Annotated[
        FormatName, typer.Option("--format", metavar="onnx|timm", help="A file, or timm's folder.")
    ] = FormatName.onnx,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Default: RUN/exports/.")] = None,
    json_: JsonOption = False,
) -> None:
    """Export a run's model, and prove the export equal to it."""
    from finetune.workflow.export import export as write

    done = write(run, format=format.value, out=out)
    if json_:
        tables.print_json({"path": str(done.path), "format": done.format, "parity": done.parity})
        return
    console = tables.out()
    console.print(f"[bold]{escape(str(done.path))}[/bold]")
    console.print(
        f"proven on {counted(done.parity['num_images'], 'image')} of the data:"
        f" logits differ by at most {done.parity['largest_difference']:.1e}"
    )
