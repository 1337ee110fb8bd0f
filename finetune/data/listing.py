"""What a reader of folders or tables returns, and the words that name a split."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePath

from finetune.types import Problem, Split
from finetune.wording import counted, listed

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
PLAIN = frozenset(
    re.findall(r"\w+", "set sets data dataset image images img imgs photo photos image images split folder")
)
COMPANIONS = frozenset(
    re.findall(
        r"\w+",
        "txt csv tsv parquet json jsonl xml yaml yml md html htm toml log db ini py ipynb pdf xmp aae thm lock mat",
    )
)
PAPERS = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "authors", "citation"})
TABLES = (".csv", ".tsv", ".parquet")
NO_IMAGE, NO_LABEL = "no image in its row", "no label in its row"
LAYOUTS = (
    "Expected DIR/<class>/images, DIR/{train,val,test}/<class>/images,"
    " or a CSV, TSV or Parquet file with the columns image and label; tar shards are wds:DIR."
)


@dataclass(slots=True)
class Row:
    """One image before classes have an index."""

    file: str
    label: str
    split: Split | None = None
    group: str | None = None


@dataclass(slots=True)
class Listing:
    """All images of a folder or table, what was left out, and what the user should know."""

    rows: list[Row] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    num_loose: int = 0
    unlabelled: dict[str, Row] = field(default_factory=dict)  # by file; that it has no class may be meant
    no_label: str = NO_LABEL  # what is said of them
    repeated: list[Row] = field(default_factory=list)  # rows whose file an earlier one names
    problems_repeated: list[Problem] = field(default_factory=list)  # what is said of them
    is_joined: bool = False  # the labels were joined by |, from several columns or a list
    is_exclusive: bool = False  # of label columns, or in lists, every image has exactly one


def holds(claim: Callable[[], bool]) -> bool:
    """Return whether a claim about a path holds; False if that cannot be told: a name too long, a loop of links."""
    try:
        return claim()
    except OSError:
        return False


def normal(name: str) -> str:
    """Return a name in the Unicode form (NFC) in which names are compared."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return a name in one Unicode form and without case."""
    return normal(name).casefold()


@lru_cache(maxsize=4096)  # a table says one of a few words in every row
def split_of(name: str, *, besides: str = "") -> Split | None:
    """Return the split that a folder's whole name means: `Train`, `training_set`, `test-images`, `valSet`, `val2017`.

    Words of another name, `besides`, are ignored: `cat_train` in `cat`.
    """
    others = set(_words(besides)) - SPLIT_NAMES.keys()
    words = [word for word in _words(name) if word not in PLAIN and word not in others]
    return SPLIT_NAMES.get(words[0]) if len(words) == 1 else None


def split_within(name: str) -> Split | None:
    """Return the one split that a part of a name stands for: `seg_train`, `birds test v2`."""
    said = {SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES}
    return said.pop() if len(said) == 1 else None


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers; `trainset` is two."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    parts: list[str] = []
    for word in (word.lower() for word in words):
        glued = next((s for s in SPLIT_NAMES if word.startswith(s) and word[len(s) :] in PLAIN), None)
        parts += [glued, word[len(glued) :]] if glued else [word]
    return parts


def count_unread(listing: Listing, names: Iterable[str]) -> None:
    """Count files that are neither readable images nor what usually lies beside images."""
    for name in names:
        kind = PurePath(name).suffix.lower()
        if kind.removeprefix(".") not in COMPANIONS and PurePath(name).stem.lower() not in PAPERS:
            listing.unread[kind or "without an ending"] += 1


def kinds_of(unread: Counter[str]) -> str:
    """Return the number of unread files of each kind, the commonest first."""
    return listed(f"{count:,} {kind}" for kind, count in unread.most_common())


def unread_note(unread: Counter[str]) -> str:
    """Return one sentence about the files of kinds that are not read."""
    are = "is of a kind" if unread.total() == 1 else "are of kinds"
    return (
        f"{counted(unread.total(), 'file')} {are} not read, and left out ({kinds_of(unread)}):"
        " convert images to JPEG or PNG"
    )
