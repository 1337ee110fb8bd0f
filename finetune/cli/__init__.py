"""The command line: the only place that prints and exits."""

from __future__ import annotations

import sys

from finetune.cli.terminal import Console, escape
from finetune.errors import FinetuneError, Interrupted, RecipeError

USAGE = "`finetune COMMAND --help` lists the flags, `finetune recipes show default` every key of the recipe."


def main() -> None:
    """Run the command line; an error of ours ends as two lines on stderr and its own exit code."""
    from finetune.cli.app import app

    try:
        app()
    except FinetuneError as error:
        said = "" if isinstance(error, Interrupted) else "error: "
        console = Console(stderr=True)
        console.print(f"{said}{_lines(error.message)}")
        hint = error.hint or (USAGE if isinstance(error, RecipeError) else "")
        if hint:
            console.print(f"hint: {_lines(hint)}")
        sys.exit(error.exit_code)


def _lines(text: str) -> str:
    """Return a text of several lines as it is to stand in rich's markup."""
    return "\n".join(map(escape, text.split("\n")))
