"""Files and folders that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident

from filelock import FileLock, Timeout

from finetune.errors import RecipeError, ResourceError

READABLE = 0o666  # the part of a new folder's rights that a file in it has: the umask holds for both


def there_above(place: Path) -> Path:
    """Return the path itself, or the nearest folder above it, that is there and can be looked at."""
    for there in (place, *place.absolute().parents):
        with suppress(PermissionError):
            if there.exists():
                return there
    return place.absolute()


@contextmanager
def whole_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yield a name beside a file's own; what the block writes there takes the file's place when it ends.

    Of a file that others may write at the same moment (`is_shared`), each writer has a name of its own.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    beside = beside_of(path.with_name(f"{path.name}.{os.getpid()}.{get_ident()}") if is_shared else path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        rights = beside.stat().st_mode & READABLE
        yield beside
        beside.chmod(rights)  # some libraries write through a file of their own, for its owner alone
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(place: Path, *, before: Path | None = None) -> Iterator[Path]:
    """Yield a new folder beside a place, and put it there when the block ends; until then the old one stays.

    The old one is kept as `before` where that is given; else it is removed.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    place = named(place)
    beside = beside_of(place)
    with folder_made(place.parent):
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            yield beside
            _settle(beside)
            put(beside, place, before=before)
        except OSError as error:
            raise unwritable(place, error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def new_whole_folder(place: Path, *, hint: str) -> Iterator[Path]:
    """Yield a new folder beside a place that is free, and put it there when the block ends; no other process meanwhile.

    Raises:
        ResourceError: it holds something, another process writes it, or it cannot be written.
    """
    with held(place):
        check_vacant(place, hint=hint)
        with whole_folder(place) as beside:
            yield beside


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Hold the place of a file or folder inside the block, so that no other process writes it by the same name beside.

    Raises:
        ResourceError: another process holds it, or it cannot be written.
    """
    place = named(place)
    path = place.with_name(f".{place.name}.lock")
    with folder_made(place.parent):
        lock = FileLock(path)
        try:
            with suppress(NotImplementedError):  # by a file system without locks, which goes on without
                lock.acquire(timeout=0)
        except Timeout as error:
            hint = "Wait until it ends, or name another place."
            raise ResourceError(f"another process is writing {place}", hint=hint) from error
        except OSError as error:
            raise unwritable(place, error) from error
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # while it is still held
            lock.release()


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder for what the block writes into it; where that fails, what was made and is empty is gone again.

    Raises:
        ResourceError: it cannot be made.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    except BaseException:
        for place in new:
            with suppress(OSError):
                place.rmdir()
        raise


def put(folder: Path, place: Path, *, before: Path | None = None) -> None:
    """Move a whole folder to a place, and what stands there out of the way: to `before`, or away."""
    if place.is_dir() and is_vacant(place) and (any(place.iterdir()) or place.samefile(Path.cwd())):
        _move_into(folder, place)
        return
    oldest = old_of(place)
    shutil.rmtree(oldest, ignore_errors=True)
    if place.exists():
        if before is not None and before.exists():
            os.replace(before, oldest)
        os.replace(place, before or oldest)
    os.replace(folder, place)
    flush(place.parent)
    shutil.rmtree(oldest, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def named(path: Path) -> Path:
    """Return a path that ends in the name of the file or folder: `.` and `..` do not."""
    return path if path.name.strip(".") else path.resolve()


def beside_of(path: Path) -> Path:
    """Return the name under which a file or folder is written before it takes its place."""
    return path.with_name(f".{path.name}.new")


def old_of(path: Path) -> Path:
    """Return the name that a folder has from when another takes its place until it is gone."""
    return path.with_name(f".{path.name}.old")


def is_vacant(folder: Path) -> bool:
    """Return whether a folder is free to be filled: hidden files, which systems and libraries leave, do not count."""
    return not folder.exists() or (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir()))


def check_vacant(place: Path, *, hint: str) -> None:
    """See that a folder is free to be filled.

    Raises:
        ResourceError: it is a file, or holds something.
    """
    if not is_vacant(place):
        raise ResourceError(f"{place} is {'not empty' if place.is_dir() else 'a file'}", hint=hint)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk, else a power cut may leave a name alone."""
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> ResourceError:
    """Return the error of a file or folder that the system refuses to write."""
    reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error  # of many files, one
    text = f"{path} cannot be written: {reason}"
    return ResourceError(text, hint="Free some disk, or check who may write there.")


def _move_into(folder: Path, place: Path) -> None:
    """Fill a folder that holds hidden files of others, or that the user stands in: it stays."""
    for entry in sorted(folder.iterdir()):
        os.replace(entry, place / entry.name)
    folder.rmdir()
    flush(place)


def _settle(folder: Path) -> None:
    """Give the files of a new folder the rights that the umask leaves, and flush everything in it."""
    rights = folder.stat().st_mode & READABLE
    for file in folder.rglob("*"):
        if file.is_symlink():
            continue  # what it leads to is another's
        if file.is_file():
            file.chmod(rights)
        flush(file)
    flush(folder)


def check_new_file(path: Path, suffix: str) -> None:
    """Refuse a file of another name than `suffix` ends, or that could not be written: see `check_new_place`.

    Raises:
        RecipeError: its name ends otherwise. ResourceError: it already exists, or its folder is not.
    """
    if path.suffix.lower() != suffix:
        name = path.stem.strip(".") or "name"
        raise RecipeError(f"{path} does not end in {suffix}", hint=f"Name it {name}{suffix}.")
    check_new_place(path)


def check_new_place(path: Path) -> None:
    """Refuse before anything is computed a file that could not be written after it.

    Raises:
        ResourceError: it already exists, or its folder is not.
    """
    if path.exists():
        raise ResourceError(f"{path} already exists", hint="Name another file, or remove it.")
    if not path.parent.is_dir():
        raise ResourceError(f"no such folder: {path.parent}", hint="Create it, or name another place.")
