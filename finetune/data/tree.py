"""A tree of files: which folders hold images, and the walk through one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.data.listing import TABLES, holds
from finetune.errors import DataError
from finetune.images.names import is_image_name
from finetune.wording import listed

IGNORED = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"}
    | {"@eadir", "#recycle", "@recycle", "#snapshot"}  # of network storage: thumbnails, and what was removed
)
RUN_FILES = ("recipe.toml", "plan.json")  # a folder that holds both is one of our run folders


def is_ignored(path: Path) -> bool:
    """Return whether a file or folder is hidden, the system's, or one of our run folders."""
    return is_hidden(path.name) or all(holds((path / name).is_file) for name in RUN_FILES)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def walk(
    folder: Path, on_error: Callable[[OSError], None], on_other: Callable[[list[str]], None] | None = None
) -> Iterator[str]:
    """Yield the images below a folder, relative to it, in sorted order; a folder that cannot be read is reported."""
    for inside, shown in folders_below(folder, on_error):
        images = [name for name in shown if is_image_name(name)]
        if on_other and len(images) < len(shown):
            on_other([name for name in shown if not is_image_name(name)])
        yield from images if inside == "." else (f"{inside}/{name}" for name in images)


def folders_below(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and those below it, relative to it, with the files in each that are not hidden, in sorted order.

    No folder is walked twice, however often it is linked, and none that the folder itself lies in.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        here = _identity(Path(place))
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not is_ignored(Path(place, name)))
        yield Path(os.path.relpath(place, folder)).as_posix(), sorted(name for name in files if not is_hidden(name))


def child_folders(folder: Path) -> list[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return [entry.name for entry in entries if holds(entry.is_dir) and not is_ignored(folder / entry.name)]


def class_folders(folder: Path) -> list[str]:
    """Return the folders in a folder that hold images; none if it cannot be read."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return []
    return [name for name in child_folders(folder) if has_images(folder / name)]


def has_images(folder: Path) -> bool:
    """Return whether images are below a folder; True also if it cannot be read."""
    unread: list[OSError] = []
    return has_own_images(folder) or next(walk(folder, unread.append), None) is not None or bool(unread)


def has_own_images(folder: Path) -> bool:
    """Return whether images are in a folder itself; False if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return any(is_image_name(e.name) and not is_ignored(Path(e)) and holds(e.is_file) for e in entries)
    except OSError:
        return False


def table_beside(folder: Path) -> str:
    """Return a hint at the tables in a folder, which may name the classes."""
    if not folder.is_dir():
        return ""
    tables = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in TABLES and holds(entry.is_file))
    return f"If {listed(tables, most=3)} says the classes, give {folder / tables[0]} as the data. " if tables else ""


def _identity(place: Path) -> tuple[int, int]:
    stat = place.stat()
    return stat.st_dev, stat.st_ino
