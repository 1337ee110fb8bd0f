"""`finetune sample`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.help import examples
from finetune.cli.options import with_interrupt

EXAMPLES = examples("sample imgs", "sample imgs --per-class 20 --seed 1")


@with_interrupt
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    per_class: Annotated[int, typer.Option("--per-class", metavar="N", min=1, help="Images of each class.")] = 60,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Other seed, other images.")] = 0,
) -> None:
    """Draw a small labelled set of images, to try the tool without data of your own."""
    from finetune.data.sample import is_among_images, write_sample

    if is_among_images(folder):
        around = folder.absolute().parent
        typer.echo(f"warning: images lie in {around}: where that is data, {folder} becomes part of it", err=True)
    files = write_sample(folder, per_class=per_class, seed=seed)
    classes = len({file.parent for file in files})
    typer.echo(f"{len(files)} images in {classes} classes: {folder}")
    typer.echo(f"next: finetune run {shlex.quote(str(folder))}")
