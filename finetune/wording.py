"""Counts, lists and the problems of a library as a sentence has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

# How pydantic's type of a problem begins, and what it means.
MEANINGS = {
    "missing": "is missing",
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "string_type": "must be text",
    "is_instance_of": "must be text",  # of names, which may be any bytes
    "dict": "must be a table",
    "mapping": "must be a table",
    "model": "must be a table",
    "dataclass": "must be a table",
    "list": "must be a list",
    "tuple": "must be a list",
}


def listed(names: Iterable[str], *, most: int = 6) -> str:
    """Return at most `most` names, and how many there are if some are left out."""
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def counted(count: int, what: str, more: str = "") -> str:
    """Return a count with its word: "1 image", "2 images"."""
    return f"{count:,} {what if count == 1 else more or what + 's'}"


def amount(num_bytes: float) -> str:
    """Return bytes as a person reads them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1024:,.1f} KiB"


def apart(num_images: int, num_independent: int) -> str:
    """Return how many images are independent, to be put behind their count; empty where all are."""
    return f" ({num_independent:,} independent)" if num_independent < num_images else ""


def trial_place(study: str, number: int, of: str = "") -> str:
    """Return which trial it is: its study and its number, `of` how many."""
    return study if study == "usual" else f"{study} {number + 1}{of}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown_value(value: Any) -> str:
    """Return a value of a key in a few signs."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_json(content: Any, *, indent: int | None = None) -> str:
    """Return JSON text; escaped where it holds names that are no UTF-8."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent)
    return text


def meaning(problem: Mapping[str, Any]) -> str:
    """Return what a problem that pydantic found in a value means to a user: "must be true or false"."""
    kind = str(problem["type"])
    known = next((words for start, words in MEANINGS.items() if kind == start or kind.startswith(f"{start}_")), None)
    return known or in_our_words(str(problem["msg"]))


def in_our_words(text: str) -> str:
    """Return what pydantic says of a value without its turns."""
    return text.replace("Input should", "must").replace("Value error, ", "")
