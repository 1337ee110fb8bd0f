"""Writes the parts of docs/ that come from the code: the keys of the recipe.

python tools/write_docs.py
"""

from __future__ import annotations

from pathlib import Path

from finetune import recipe as recipes
from finetune.settings import SECTIONS, Recipe

PLACE = Path(__file__).parents[1] / "docs" / "recipes.md"
MARK = "<!-- the rest is written by tools/write_docs.py -->"


def recipe_keys() -> str:
    """Yield a table of every key: what it takes, its default, its help, its flag."""
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


def with_keys(text: str) -> str:
    """Yield a page with everything after the mark written anew."""
    return text.split(MARK)[0] + MARK + "\n" + recipe_keys()


if __name__ == "__main__":
    PLACE.write_text(with_keys(PLACE.read_text(encoding="utf-8")), encoding="utf-8")
