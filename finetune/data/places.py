"""Where data is, as `data.path` says: a folder, a table, or shards (wds:) on this machine or in a store."""

from __future__ import annotations

import re
from pathlib import Path

from finetune.data.listing import TABLES
from finetune.errors import DataError, RecipeError
from finetune.images.stores import address_of

SHARDS = "wds:"
HUB = "hfds:"
WILD = "*?[{"
MOST_NAMED = 1_000_000  # shards that braces may stand for


def shards_named(path: str | Path) -> str | None:
    """Return the folder, pattern or address of shards; None for other data.

    Raises:
        DataError: it is a data set of the Hub.
    """
    text = str(path)
    if text.startswith(HUB):
        raise DataError(
            f"{text}: a data set of the Hub must first be written as shards",
            hint=f"finetune shard {text} --out shards; then wds:shards is the data.",
        )
    if not text.startswith(SHARDS):
        return None
    where = text.removeprefix(SHARDS)
    return address_of(where) or Path(where).expanduser().as_posix()


def settled_path(path: str) -> str:
    """Return `data.path` so that it means the same from any folder."""
    shards = shards_named(path)
    if shards is None:
        return str(Path(path).expanduser().resolve())
    return f"{SHARDS}{shards if address_of(shards) else Path(shards).resolve().as_posix()}"


def root_of(path: str) -> str:
    """Return the folder or address that the files of a data set are relative to."""
    shards = shards_named(path)
    if shards is not None:
        fixed = re.split(rf"/(?=[^/]*[{re.escape(WILD)}])", shards, maxsplit=1)[0]
        is_one = fixed == shards and fixed.endswith(".tar")
        return fixed.rpartition("/")[0] or "." if is_one else fixed.rstrip("/") or "/"
    place = Path(path)
    is_table = place.is_file() or (not place.exists() and place.suffix.lower() in TABLES)  # or was one, and is gone
    return str(place.parent if is_table else place)


def check_outside(place: Path, data: str, *, flag: str = "--out") -> None:
    """Check that what is written at a place does not become data: that it is not inside of the data's folder.

    Raises:
        RecipeError: it is.
    """
    root = Path(root_of(data)).expanduser()
    is_folder = shards_named(data) is not None or Path(data).expanduser().is_dir()  # beside a table nothing is read
    if data and is_folder and address_of(root_of(data)) is None and place.resolve().is_relative_to(root.resolve()):
        raise RecipeError(
            f"{place} is inside the data, {root.resolve()}: what is written there would be read as data",
            hint=f"Name a place outside it with {flag}.",
        )


def data_name(path: str) -> str:
    """Return what a data set is called: the name of its folder or file."""
    return Path(root_of(path) if shards_named(path) is not None else path).name


def braces_expanded(pattern: str) -> list[str]:
    """Return what {000..099} and {a,b} in a pattern stand for, as WebDataset writes them.

    Raises:
        DataError: too many names.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers and int(numbers[2]) - int(numbers[1]) >= MOST_NAMED:
        raise DataError(f"{pattern} stands for more than {MOST_NAMED:,} shards")
    words = (
        [f"{n:0{len(numbers[1])}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
        if numbers
        else match[1].split(",")
    )
    tails = braces_expanded(pattern[match.end() :])
    return [f"{pattern[: match.start()]}{word}{tail}" for word in words for tail in tails]
