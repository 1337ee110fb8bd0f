"""The command line: the only place that prints and exits."""

from __future__ import annotations

import sys

from finetune.cli.terminal import printable
from finetune.errors import FinetuneError


def main() -> None:
    """Run the command line; an error of ours ends as two lines on stderr and its own exit code."""
    from finetune.cli.app import app

    try:
        app()
    except FinetuneError as error:
        print(f"error: {printable(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {printable(error.hint)}", file=sys.stderr)
        sys.exit(error.exit_code)
