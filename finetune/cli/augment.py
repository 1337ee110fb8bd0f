"""`finetune augment`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.help import examples
from finetune.cli.options import RecipeOption, base_recipe, recipe_options

EXAMPLES = examples(
    "augment imgs -o grid.png",
    "augment imgs -o grid.png --set augment.policy=augmix",
)


@partial(recipe_options, flags=())
def augment(
    *,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, or a table.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The .png to write.", show_default=False)],
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="How many images are drawn.")] = 4,
    recipe: RecipeOption = None,
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> None:
    """Draw what augmentation makes of some images, level by level, as one picture."""
    from finetune.workflow.augment import augment as draw

    base = base_recipe(recipe, {**settings, "data": data}, overrides)
    typer.echo(draw(data, out=out, images=images, recipe=base, overrides=overrides))
