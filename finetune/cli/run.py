"""`finetune run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import ranks
from finetune.checkpoint.run_folder import RunFolder, open_unfinished
from finetune.cli import several, tables
from finetune.cli.completion import complete_unfinished
from finetune.cli.help import examples
from finetune.cli.options import JsonOption, RecipeOption, base_recipe, recipe_options, set_once
from finetune.cli.screen import watching
from finetune.errors import RecipeError

EXAMPLES = examples(
    "run imgs",
    "run imgs --backbone resnet18 --strategy top-k --top-k 2",
    "run imgs --folds 5",
    "run --resume runs/RUN",
)


@recipe_options
def run(
    *,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    images: Annotated[str | None, typer.Argument(metavar="DATA", help="Short for --data DATA.")] = None,
    recipe: RecipeOption = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", metavar="K", min=2, help="K runs, each with another part of the images as val."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=2, help="N runs, from --seed on.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder, new or empty.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Resume a stopped run.", autocompletion=complete_unfinished),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="data|version|recipe", help="With --resume, let this have changed."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Train a classifier on a folder of images."""
    if images is not None:
        set_once(settings, "data", images)
    if resume is not None and (recipe or out or folds or seeds):
        raise RecipeError("--resume uses the run's own folder and recipe: no --recipe, --out, --folds or --seeds")
    if allow and resume is None:
        raise RecipeError("--allow needs --resume: a new run has no changes to allow")
    if folds or seeds or (resume is not None and RunFolder(resume).several.is_file()):
        several.run_them(
            folds=folds, seeds=seeds, recipe=recipe, out=out, resume=resume, allow=allow, settings=settings,
            overrides=overrides, json_=json_,
        )  # fmt: skip
        return
    is_first = ranks.launched().rank == 0
    if resume is not None and not allow and is_first:
        open_unfinished(resume)
    base = base_recipe(recipe, settings, overrides) if resume is None else None
    with watching(is_quiet=json_ or not is_first) as on_event:
        from finetune.workflow.run import resume as go_on
        from finetune.workflow.run import run as train

        if resume is not None:
            result = go_on(resume, allow=allow or (), overrides=overrides, on_event=on_event, **settings)
        else:
            result = train(recipe=base, out=out, overrides=overrides, on_event=on_event, **settings)
    if json_ and is_first:
        tables.print_json(result.to_json())
    elif is_first:
        tables.show_result(result)
