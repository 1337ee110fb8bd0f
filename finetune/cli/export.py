"""`finetune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from finetune.checkpoint.run_folder import open_finished
from finetune.cli import tables
from finetune.cli.options import JsonOption, RunArgument, with_interrupt
from finetune.cli.screen import watching
from finetune.cli.terminal import escape
from finetune.values import ExportFormat
from finetune.wording import counted

FormatName = StrEnum("FormatName", {name: name for name in get_args(ExportFormat)})  # type: ignore[misc]

DEFAULT = FormatName("onnx")


@with_interrupt
def export(
    run: RunArgument,
    format: Annotated[
        FormatName, typer.Option("--format", metavar="|".join(FormatName), help="A file, or timm's folder.")
    ] = DEFAULT,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Default: RUN/exports/.")] = None,
    json_: JsonOption = False,
) -> None:
    """Export a run's model, and prove the export equal to it."""
    open_finished(run)
    with watching(is_quiet=json_):
        from finetune.workflow.export import export as write

        done = write(run, format=cast(ExportFormat, format.value), out=out)
    if json_:
        tables.print_json({"path": str(done.path), "format": done.format, "parity": done.parity})
        return
    console = tables.out()
    console.print(f"[bold]{escape(str(done.path))}[/bold]")
    console.print(
        f"proven on {counted(done.parity['num_images'], 'image')} of the data:"
        f" logits differ by at most {done.parity['largest_difference']:.1e}"
    )
