"""The recipes that ship with the tool: their names and texts, and checking one of your own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from finetune import recipe as recipes
from finetune.errors import RecipeError, ResourceError, did_you_mean
from finetune.settings import Recipe

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe in the package: its name, its purpose as its header says, its strategy."""

    name: str
    purpose: str
    strategy: str


def list_recipes() -> list[ShippedRecipe]:
    """Return the shipped recipes by name."""
    shipped = []
    for name in recipes.shipped_names():
        text = recipe_text(name)
        shipped.append(ShippedRecipe(name, header_of(text)["Purpose"], recipes.loads(text, source=name).strategy.name))
    return shipped


def header_of(text: str) -> dict[str, str]:
    """Return the header of a shipped recipe: the lines `# Key: value` above its first setting, in order."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return dict(line.removeprefix("# ").split(": ", 1) for line in lines)


def recipe_text(name: str) -> str:
    """Return the text of a shipped recipe, of a file, or of "default": every key with its help.

    Raises:
        RecipeError: neither a shipped recipe nor a file.
    """
    if name == DEFAULT:
        return recipes.dump(Recipe(), header="Every key with its default.", describe=True)
    if name in recipes.shipped_names() and not Path(name).is_file():
        return recipes.shipped_text(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(
            f"no recipe {name!r}.{did_you_mean(name, recipes.shipped_names())}",
            hint="`finetune recipes ls` lists them.",
        ) from None


def load_recipe(name: str) -> Recipe:
    """Return a recipe by the name of a shipped one or by the path of a file.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    return recipes.loads(recipe_text(name), source=name)


def copy_recipe(name: str, to: Path) -> Path:
    """Write a recipe to a new file, to be edited.

    Raises:
        ResourceError: the file exists already or cannot be written.
    """
    target = to / f"{name}.toml" if to.is_dir() else to
    text = recipe_text(name)
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ResourceError(f"{target} exists already", hint="Name another file.") from None
    except OSError as error:
        raise ResourceError(f"{target} cannot be written: {error.strerror}") from error
    return target
