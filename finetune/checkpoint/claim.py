"""Who may write into a run folder: one process at a time, from its first file to its last.

The claim is a lock on the file `.lock` in the folder; the system releases it when the process ends,
however it ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.checkpoint.run_folder import LOCK, RunFolder, check_new, slug
from finetune.data.places import check_outside
from finetune.errors import ResourceError
from finetune.types import Event, OnEvent, ignore

RUNS = Path("runs")
LINGER = 10.0  # seconds: the workers of a killed run notice within five that it is gone, and hold its lock until then


@contextmanager
def claimed(folder: RunFolder, *, seconds: float, on_event: OnEvent = ignore) -> Iterator[None]:
    """Hold a run folder inside the block, after waiting up to `seconds` for another process that holds it.

    Raises:
        ResourceError: another process still holds it, or the folder cannot be written.
    """
    lock = FileLock(folder.path / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_event(Event.message(f"another process holds {folder.path}; waiting up to {seconds:.0f} s"))
            lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ResourceError(
            f"another process is writing into {folder.path}",
            hint="Wait until it ends, or name another folder with --out.",
        ) from error
    except OSError as error:
        raise _unwritable(folder.path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_folder(out: Path | None, *, words: Iterable[str] = (), data: str = "") -> Iterator[RunFolder]:
    """Make and hold a run folder outside of the data: `out` (new or empty), else runs/<date-time>-<words>.

    A block that fails before the run is laid out leaves nothing behind.

    Raises:
        ResourceError: it holds something, another process holds it, or it cannot be written.
        RecipeError: it lies inside of the data.
    """
    check_outside(out or RUNS, data)
    try:
        created = _made_by_name(words) if out is None else _made(out)
    except OSError as error:
        raise _unwritable(out or RUNS, error) from error
    path = out or created[0]
    folder = RunFolder(path)
    with claimed(folder, seconds=0):
        check_new(path)  # no one else writes from here on
        clear_leftovers(folder)
        try:
            yield folder
        except BaseException:
            if not folder.is_laid:
                _take_back(folder, created)
            raise


def _made(out: Path) -> list[Path]:
    """Make a folder and return the folders that were not there before, the innermost first."""
    check_new(out)
    missing = [parent for parent in (out, *out.absolute().parents) if not parent.exists()]
    out.mkdir(parents=True, exist_ok=True)
    return missing


def _made_by_name(words: Iterable[str]) -> list[Path]:
    """Make a folder under a free name: of two runs in one minute, one gets the first name, the other the next."""
    missing = [] if RUNS.exists() else [RUNS]
    RUNS.mkdir(exist_ok=True)
    name = "-".join([datetime.now().strftime("%Y-%m-%d-%H%M"), *map(slug, words)])
    path, number = RUNS / name, 1
    while True:
        try:
            path.mkdir()
            return [path, *missing]
        except FileExistsError:
            number += 1
            path = RUNS / f"{name}-{number}"


def _take_back(folder: RunFolder, created: Iterable[Path]) -> None:
    clear_leftovers(folder)
    shutil.rmtree(folder.candidates, ignore_errors=True)
    for name in (*folder.laid, folder.path / LOCK):
        name.unlink(missing_ok=True)
    for parent in created:
        with suppress(OSError):  # something of the user's is in it by now
            parent.rmdir()


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what a killed process had begun to write in a claimed run folder."""
    for leftover in folder.leftovers():
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"the run folder {path} cannot be written: {error.strerror}", hint="Name another with --out.")
