"""Counts and lists as a sentence has them."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str], *, most: int = 6) -> str:
    """Return at most so many names, with a sign of those that are left out."""
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def counted(count: int, what: str, more: str = "") -> str:
    """Return a count with its word: "1 image", "2 images"."""
    return f"{count:,} {what if count == 1 else more or what + 's'}"


def apart(num_images: int, num_independent: int) -> str:
    """Return how many images are independent, to be put behind their count; empty where all are."""
    return f" ({num_independent:,} independent)" if num_independent < num_images else ""
