"""`run` and `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.backbone.catalogue import find
from finetune.cli import tables
from finetune.cli.options import TRAINING, JsonOption, recipe_options
from finetune.cli.plan import show_plan
from finetune.cli.screen import watching
from finetune.errors import RecipeError

RUN_EXAMPLES = (
    "Examples:\n  finetune run imgs\n  finetune run imgs --backbone resnet18 --strategy top-k --top-k 2\n"
    "  finetune run --resume runs/RUN"
)
PLAN_EXAMPLES = "Examples:\n  finetune plan imgs\n  finetune plan resnet18 --top-k 2\n  finetune plan vgg16 --layers"

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME|FILE", help="Start from a recipe.", rich_help_panel=TRAINING)
]


@recipe_options
def run(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    images: Annotated[str | None, typer.Argument(metavar="DATA", help="Short for --data DATA.")] = None,
    recipe: RecipeOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder, new or empty.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a stopped run.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="data|version|recipe", help="With --resume, let this have changed."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Train a classifier on a folder of images."""
    if images is not None:
        _set_once(settings, "data", images)
    if resume is not None and (recipe or out):
        raise RecipeError("--resume goes on in the run's own folder with its own recipe: no --recipe, no --out")
    if allow and resume is None:
        raise RecipeError("--allow goes with --resume: a new run has nothing to compare with")
    from finetune.workflow.recipes import load_recipe
    from finetune.workflow.run import resume as go_on
    from finetune.workflow.run import run as train

    with watching(is_quiet=json_) as on_event:
        if resume is not None:
            result = go_on(resume, allow=allow or (), overrides=overrides, on_event=on_event, **settings)
        else:
            base = load_recipe(recipe) if recipe else None
            result = train(recipe=base, out=out, overrides=overrides, on_event=on_event, **settings)
    if json_:
        tables.print_json(result.to_json())
    else:
        tables.show_result(result)


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
        int | None, typer.Option("--images", min=1, metavar="N", help="Show sizes and times for so many images.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show what a run would do, without training."""
    if name is not None:
        is_network = find(name) is not None or not Path(name).exists()
        _set_once(settings, "backbone" if is_network else "data", name)
    from finetune.workflow.plan import plan as make_plan
    from finetune.workflow.recipes import load_recipe

    with watching(is_quiet=json_) as on_event:
        base = load_recipe(recipe) if recipe else None
        made = make_plan(recipe=base, overrides=overrides, layers=layers, images=images, on_event=on_event, **settings)
    if json_:
        tables.print_json(made.to_json())
    else:
        show_plan(made)


def _set_once(settings: dict[str, Any], flag: str, value: str) -> None:
    """Take an argument for a flag, unless the flag names something else."""
    if settings.setdefault(flag, value) != value:
        what = {"data": "data sets", "backbone": "backbones"}[flag]
        raise RecipeError(f"two {what}, {value} and --{flag} {settings[flag]}", hint="Name one of them.")
