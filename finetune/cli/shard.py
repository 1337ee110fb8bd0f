"""`finetune shard`."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.help import examples
from finetune.cli.options import RecipeOption, base_recipe, parse_size, recipe_options, set_once
from finetune.cli.screen import watching
from finetune.wording import amount, counted

EXAMPLES = examples(
    "shard imgs --out shards", "shard labels.csv --out shards --size 500MB", "shard hfds:OWNER/NAME --out shards"
)


@partial(recipe_options, flags=("data", "task", "group_by"))
def shard(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    name: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Short for --data PATH.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="A new folder.", show_default=False)],
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="The largest size of a shard.")] = "1GB",
    recipe: RecipeOption = None,
) -> None:
    """Write a data set as WebDataset shards, its files byte for byte; `--data wds:DIR` reads them."""
    if name is not None:
        set_once(settings, "data", name)
    most = parse_size(size, "--size")
    base = base_recipe(recipe, settings, overrides, takes_hub=True)
    with watching() as on_event:
        from finetune.workflow.shard import shard as write

        shards = write(out=out, size=most, recipe=base, overrides=overrides, on_event=on_event, **settings)
    for split, lengths in shards.shards.items():
        images, files = counted(sum(lengths.values()), "image"), counted(len(lengths), "shard")
        typer.echo(f"{split}: {images} in {files}")
    typer.echo(f"written: {shards.folder}, {amount(shards.num_bytes)}")
    if len(shards.classes) != 1:
        typer.echo(f"next: finetune run {shlex.quote(f'wds:{shards.folder}')}")
