"""`recipes ls|show|copy|validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import tables
from finetune.cli.completion import complete_recipe
from finetune.cli.help import App, examples

app = App(help="List, show, copy and check recipes.", no_args_is_help=True)
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A shipped recipe, a file, or default.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]


@app.command("ls", epilog=examples("recipes ls", "run imgs --recipe head-only"))
def list_them() -> None:
    """List the shipped recipes."""
    from finetune.workflow.recipes import list_recipes

    rows = [(recipe.name, recipe.purpose) for recipe in list_recipes()]
    tables.out().print(tables.table(["recipe", "purpose"], rows, words=["purpose"]))


@app.command(epilog=examples("recipes show head-only", "recipes show default"))
def show(name: NameArgument) -> None:
    """Print a recipe; "default" shows every key with its help."""
    from finetune.workflow.recipes import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command(epilog=examples("recipes copy top-k mine.toml", "run imgs --recipe mine.toml"))
def copy(
    name: NameArgument,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new file, or a folder.", show_default=False)],
) -> None:
    """Copy a recipe to a file of your own, to be edited."""
    from finetune.workflow.recipes import copy_recipe

    typer.echo(copy_recipe(name, to))


@app.command(epilog=examples("recipes validate mine.toml", "recipes validate full"))
def validate(name: NameArgument) -> None:
    """Check a recipe: every problem at once."""
    from finetune.workflow.recipes import load_recipe

    load_recipe(name)
    typer.echo(f"{name}: valid")
