"""The cache as a user sees it: its contents, and clearing it."""

from __future__ import annotations

from pathlib import Path

from finetune.cache_entries import EntryFacts, clear, entries_folder, list_entries
from finetune.errors import DataError


def list_cache(folder: str = "auto") -> tuple[Path, list[EntryFacts]]:
    """Return where the cache lies, and its entries, the least recently used first."""
    place = entries_folder(folder)
    return place, list_entries(place) if place.is_dir() else []


def clear_cache(names: list[str] | None = None, *, folder: str = "auto") -> tuple[int, list[str]]:
    """Remove entries by the beginning of their names (all of them without names).

    Returns the bytes freed, and the names of entries that stay because a process is filling them.

    Raises:
        DataError: no entry begins like that.
    """
    place, entries = list_cache(folder)
    chosen = []
    for name in names or [""]:
        matching = [entry.name for entry in entries if entry.name.startswith(name)]
        if name and not matching:
            raise DataError(f"no entry {name!r} in {place}", hint="`finetune cache ls` lists them.")
        chosen += matching
    freed = clear(place, chosen)
    return freed, [entry.name for entry in list_entries(place) if entry.name in chosen]
