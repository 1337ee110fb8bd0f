"""`recipes ls|show|copy|validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli import tables
from finetune.cli.help import App

app = App(help="List, show, copy and check recipes.", no_args_is_help=True)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, a file, or default.", show_default=False)
]


@app.command("ls")
def list_them() -> None:
    """List the shipped recipes."""
    from finetune.workflow.recipes import list_recipes

    rows = [(recipe.name, recipe.purpose) for recipe in list_recipes()]
    tables.out().print(tables.table(["recipe", "purpose"], rows, words=["purpose"]))


@app.command()
def show(name: NameArgument) -> None:
    """Print a recipe; "default" shows every key with its help."""
    from finetune.workflow.recipes import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command()
def copy(
    name: NameArgument,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new file, or a folder.", show_default=False)],
) -> None:
    """Copy a recipe to a file of your own, to be edited."""
    from finetune.workflow.recipes import copy_recipe

    typer.echo(copy_recipe(name, to))


@app.command()
def validate(name: NameArgument) -> None:
    """Check a recipe: every problem at once."""
    from finetune.workflow.recipes import load_recipe

    load_recipe(name)
    typer.echo(f"{name}: valid")
