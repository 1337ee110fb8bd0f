"""Writes the parts of docs/ that come from the code beside it: the recipes and their keys, the Python API, the errors.

python tools/write_docs.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import FunctionType

sys.path.insert(0, str(Path(__file__).parents[1]))  # of several checkouts this one, whichever is installed

import finetune
from finetune import recipe as recipes
from finetune.errors import FinetuneError
from finetune.settings import SECTIONS, Recipe
from finetune.workflow.recipes import header_of, list_recipes, recipe_text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_EMPTY = inspect.Parameter.empty
MARK = "<!-- the rest is written by tools/write_docs.py -->"


def recipe_page() -> str:
    """Return a table of the shipped recipes, and one of every key."""
    return shipped_recipes() + recipe_keys()


def shipped_recipes() -> str:
    """Return a table of the shipped recipes: what each is for, and what its header says was measured."""
    lines = ["\n## The shipped recipes\n", "| recipe | what for | train images | top1 on test | CPU seconds | source |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for recipe in list_recipes():
        header = header_of(recipe_text(recipe.name))
        top1, seconds = header["Top1"].partition(" on ")[0], header["Machine"].rpartition("; ")[2].partition(" ")[0]
        train = header["Data"].rpartition("; ")[2].partition(" ")[0]
        lines.append(f"| `{recipe.name}` | {recipe.purpose} | {train} | {top1} | {seconds} | {header['Source']} |")
    return "\n".join(lines) + "\n"


def recipe_keys() -> str:
    """Return a table of every key: what it takes, its default, its help, its flag."""
    flags = {key: f"`--{flag.replace('_', '-')}`" for flag, key in recipes.ALIASES.items()}
    defaults = Recipe().model_dump()
    lines = []
    for section, model in SECTIONS.items():
        lines += [f"\n## [{section}]", f"{Recipe.model_fields[section].description}\n"]
        lines += ["| key | takes | default | what it does | flag |", "| --- | --- | --- | --- | --- |"]
        for key, info in model.model_fields.items():
            takes = recipes.describe_type(info).replace("|", "\\|")
            default = defaults[section][key]
            name = f"{section}.{key}"
            help_text = str(info.description).replace("|", "\\|")
            lines.append(f"| `{name}` | {takes} | `{default!r}` | {help_text} | {flags.get(name, '')} |")
    return "\n".join(lines) + "\n"


def api() -> str:
    """Return every public function with its signature and docstring, then every public class with its docstring."""
    found = {name: getattr(finetune, name) for name in finetune.__all__ if name != "__version__"}
    functions = {name: thing for name, thing in found.items() if inspect.isfunction(inspect.unwrap(thing))}
    classes = {
        name: thing for name, thing in found.items() if inspect.isclass(thing) and not issubclass(thing, FinetuneError)
    }
    parts = ["\n## Functions", *(_function(name, thing) for name, thing in functions.items())]
    return "\n\n".join([*parts, "## Classes", *(_class(name, thing) for name, thing in classes.items())]) + "\n"


def errors() -> str:
    """Return a table of the errors: exit code, when, by the tree in `finetune.errors`."""
    kinds = [finetune.FinetuneError, *finetune.FinetuneError.__subclasses__()]
    lines = ["", "| error | exit code | what it is about |", "| --- | --- | --- |"]
    codes = {finetune.Interrupted: "130, 143"}
    lines += [f"| `finetune.{kind.__name__}` | {codes.get(kind, kind.exit_code)} | {_first(kind)} |" for kind in kinds]
    return "\n".join(lines) + "\n"


def _function(name: str, thing: FunctionType) -> str:
    return f"### `finetune.{name}`\n\n```python\n{name}{_signature(thing)}\n```\n\n{_text(thing)}"


def _signature(thing: FunctionType) -> str:
    """Return the signature of a function, with an argument on a line where it is long."""
    found = inspect.signature(thing)
    parts: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts and not any(p[:1] == "*" for p in parts):
            parts.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        named = f"{star}{parameter.name}" + (f": {parameter.annotation}" if parameter.annotation != _EMPTY else "")
        default = getattr(parameter.default, "__name__", None) or repr(parameter.default)
        parts.append(named if parameter.default is _EMPTY else f"{named} = {default}")
    short = f"({', '.join(parts)}) -> {found.return_annotation}"
    folded = "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {found.return_annotation}"
    return short if len(short) < 90 else folded


def _class(name: str, thing: type) -> str:
    methods = [
        f"- `.{attribute}{_signature(member)}`: {_first(member)}"
        for attribute, member in vars(thing).items()
        if inspect.isfunction(member) and not attribute.startswith("_") and member.__doc__
    ]
    fields = ", ".join(f"`{field}`" for field in getattr(thing, "__dataclass_fields__", {}))
    parts = [f"### `finetune.{name}`", _text(thing), f"Fields: {fields}." if fields else "", "\n".join(methods)]
    return "\n\n".join(part for part in parts if part)


def _text(thing: object) -> str:
    """Return a docstring as Markdown: indented lines are code, sections are bold."""
    text, _, raised = (inspect.getdoc(thing) or "").partition("\n\nRaises:\n")
    return text + (f"\n\n**Raises** {' '.join(raised.split())}" if raised else "")


def _first(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


PAGES = {"recipes.md": recipe_page, "api.md": api, "errors.md": errors}


def written(name: str, text: str) -> str:
    """Return a page with everything after the mark written anew."""
    return text.split(MARK)[0] + MARK + "\n" + PAGES[name]()


if __name__ == "__main__":
    for name in PAGES:
        place = DOCS / name
        place.write_text(written(name, place.read_text(encoding="utf-8")), encoding="utf-8")
