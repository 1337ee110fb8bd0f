"""`finetune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.backbone.catalogue import find
from finetune.cli import tables
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, RecipeOption, base_recipe, parse_size, recipe_options, set_once
from finetune.cli.screen import watching
from finetune.cli.show_plan import show_plan
from finetune.data.listing import TABLES
from finetune.data.places import SHARDS

FILES = (*TABLES, ".txt", ".json", ".zip", ".tar")  # endings of what is no network

EXAMPLES = examples(
    "plan imgs",
    "plan resnet18 --top-k 2",
    "plan vgg16 --layers",
    "plan resnet50 --strategy full --memory --within 16GB",
)


@recipe_options
def plan(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    name: Annotated[
        str | None, typer.Argument(metavar="DATA|BACKBONE", help="Short for --data DATA, or for --backbone NAME.")
    ] = None,
    recipe: RecipeOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show every layer: output, parameters, memory, receptive field.")
    ] = False,
    images: Annotated[
        int | None, typer.Option("--images", min=1, metavar="N", help="Show sizes and times for this many images.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Show what a step takes of a GPU's memory; needs no GPU.")
    ] = False,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="SIZE", help="With --memory: how many images at once fit, e.g. 16GB."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show what a run would do, without training."""
    if name is not None:
        set_once(settings, "backbone" if _is_network(name) else "data", name)
    base = base_recipe(recipe, settings, overrides, needs_data=False if layers else None)
    room = memory if within is None else parse_size(within, "--within")
    with watching(is_quiet=json_) as on_event:
        from finetune.workflow.plan import plan as make_plan

        planned = make_plan(
            recipe=base, overrides=overrides, layers=layers, images=images, memory=room, on_event=on_event, **settings
        )
    if json_:
        tables.print_json(planned.to_json())
    else:
        show_plan(planned)


def _is_network(name: str) -> bool:
    """Return whether a name is a network's rather than data's; if it is neither, what it looks like."""
    if find(name) is not None:
        return True
    if name.startswith(SHARDS) or "://" in name or Path(name).exists():
        return False
    return ":" in name or not (set("/\\~") & set(name) or Path(name).suffix.lower() in FILES)
