"""The command line: the only place that prints and exits.

Nothing is imported before `main` has begun, so that whatever stops it is reported in our own words.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.errors import FinetuneError

USAGE = "`finetune COMMAND --help` lists the flags, `finetune recipes show default` every key of the recipe."
GRACE = 3.0  # seconds for another process of a run to say why it ends: a launcher ends all when one has ended
SPINS = "30000"  # rounds in which a thread looks for work before it sleeps: a tenth of what is usual (docs/log.md)
ENDS: dict[type[BaseException], int] = {KeyboardInterrupt: 130, BrokenPipeError: 141}  # as a shell has them


def main() -> None:
    """Run the command line; an error of ours ends as two lines on stderr and its own exit code."""
    _have_threads_sleep()
    try:
        code = _code()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        from finetune import ranks

        if ranks.speaks():
            print("stopped", file=sys.stderr)
        code = ENDS[KeyboardInterrupt]
    except BrokenPipeError:
        code = ENDS[BrokenPipeError]
    if code == ENDS[BrokenPipeError]:
        _write_no_more()
    sys.exit(code)


def _have_threads_sleep() -> None:
    """Have torch's threads sleep soon when they wait for each other: they would spin on cores that others need.

    Read when torch is imported, by the OpenMP library of its wheels for Linux; whoever has said something about
    waiting is obeyed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _code() -> str | int | None:
    """Run the command that is asked for and return its exit code."""
    from finetune.cli.app import app
    from finetune.errors import FinetuneError, refused

    try:
        with _heard():
            app()
    except FinetuneError as error:
        _say(error)
        return error.exit_code
    except SystemExit as end:
        return _cause(end) or end.code
    except OSError as error:
        told = refused(error)
        if told is None:
            raise
        _say(told)
        return told.exit_code
    return 0


@contextmanager
def _heard() -> Iterator[None]:
    """Let only one process print inside the block if a launcher has started several here."""
    from finetune.ranks import launched

    if launched().local_rank == 0:
        yield
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def _cause(end: BaseException) -> int | None:
    """Return the exit code for Ctrl-C, or for output that nobody reads, if a library ended the program for it.

    They take the code of a bug.
    """
    cause = end.__context__
    return None if cause is None else ENDS.get(type(cause)) or _cause(cause)


def _write_no_more() -> None:
    """Discard what is still to be written to stdout: the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: FinetuneError) -> None:
    from finetune import ranks
    from finetune.cli.terminal import Console
    from finetune.errors import Interrupted, RecipeError

    if not ranks.speaks():
        time.sleep(GRACE)
        return
    said = "" if isinstance(error, Interrupted) else "error: "
    console = Console(stderr=True)
    console.print(f"{said}{_lines(error.message)}")
    hint = error.hint or (USAGE if isinstance(error, RecipeError) else "")
    if hint:
        console.print(f"hint: {_lines(hint)}")


def _lines(text: str) -> str:
    """Return a text of several lines for rich's markup."""
    from finetune.cli.terminal import escape

    return "\n".join(map(escape, text.split("\n")))
