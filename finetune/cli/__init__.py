"""The command line: the only place that prints and exits."""

from __future__ import annotations

import sys

from finetune.cli.terminal import printable
from finetune.errors import FinetuneError, Interrupted, RecipeError

USAGE = "`finetune COMMAND --help` lists the flags, `finetune recipes show default` every key of the recipe."


def main() -> None:
    """Run the command line; an error of ours ends as two lines on stderr and its own exit code."""
    from finetune.cli.app import app

    try:
        app()
    except FinetuneError as error:
        said = "" if isinstance(error, Interrupted) else "error: "
        print(f"{said}{printable(error.message)}", file=sys.stderr)
        hint = error.hint or (USAGE if isinstance(error, RecipeError) else "")
        if hint:
            print(f"hint: {printable(hint)}", file=sys.stderr)
        sys.exit(error.exit_code)
