"""What a run requires of its process: no other run in it, and no sibling processes that share nothing with it."""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune import ranks
from finetune.errors import ResourceError

_TURN = threading.RLock()  # torch draws random numbers and traces networks for a process, not for a thread


def num_cores(*, most: int | None = None) -> int:
    """Return how many cores this process may use, at most `most`: its share, if several of a run are at work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if ranks.count() > 1:
        cores = max(1, cores // ranks.local_count())
    return min(cores, most or cores)


@contextmanager
def own_turn() -> Iterator[None]:
    """Let no other thread train or measure inside the block; waits for one that does.

    Raises:
        ResourceError: a launcher started several such processes, which share nothing, or it is a worker that came
            here by itself.
    """
    check_launched_once()
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise unguarded_script()
    with _TURN:
        yield


def check_launched_once() -> None:
    """Check that no launcher has started several processes for this, unless these share it.

    Raises:
        ResourceError: one has.
    """
    if ranks.is_together():
        return
    count = next((os.environ[name] for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE") if name in os.environ), "1")
    is_launched = any(name in os.environ for name in ("LOCAL_RANK", "RANK", "OMPI_COMM_WORLD_RANK"))
    if is_launched and count.strip().isdecimal() and int(count) > 1:
        raise ResourceError(
            f"a launcher (torchrun, accelerate launch, mpirun) has started {count} processes; this command needs one",
            hint="Start it without the launcher. `finetune run` alone is shared by several processes, those of torchrun"
            " or accelerate launch.",
        )


def is_unguarded() -> bool:
    """Return whether new processes would run this one's script again: it nowhere checks `__name__`."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or multiprocessing.get_start_method() == "fork":
        return False
    try:
        compared = [
            node for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))) if isinstance(node, ast.Compare)
        ]
        sides = (side for node in compared for side in (node.left, *node.comparators))
        return not any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
    except (OSError, ValueError, SyntaxError):
        return False


def unguarded_script() -> ResourceError:
    """Return the error for a script that worker processes run again when they import it."""
    file = getattr(sys.modules["__main__"], "__file__", None) or "the script"
    return ResourceError(
        f"{file} does its work whenever it is imported, and each process that decodes images imports it",
        hint='Put its work under `if __name__ == "__main__":`, or start no such processes (workers=0).',
    )
