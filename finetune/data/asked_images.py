"""The images a user asks about by name: files, folders, patterns, tables, addresses, standard input.

They can be iterated over in order, more than once, and are never all listed: at most the names of one folder are held.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from numpy.typing import NDArray
from PIL import Image

from finetune.csv_cells import unguarded_cell
from finetune.data.addresses import fetched, is_address
from finetune.data.image_column import AUTO, check_column, count_rows, image_cells
from finetune.data.listing import TABLES, Listing, count_unread, holds, unread_note
from finetune.data.places import shards_named
from finetune.data.shards import looked_through, named_shards
from finetune.data.tree import walk
from finetune.errors import DataError, RecipeError, did_you_mean
from finetune.images.decode import UndecodableError
from finetune.images.files import FORMS, begins_as, read_content
from finetune.images.shards import Shard, read_member
from finetune.images.stores import address_of
from finetune.types import Event, OnEvent, ignore

STDIN = "-"
STDIN_NAME = "standard input"
EXPECTED = "Give images, folders, patterns, a CSV, TSV or Parquet file that names images, or addresses."
HEAD = 64  # bytes of standard input by which an image is told from names
TEXT = frozenset(range(9, 14)) | frozenset(range(32, 256))  # what names of files are made of


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image to be named: what it is called, and a function that returns the bytes of its file or the image itself.

    `read` raises UndecodableError or OSError where it cannot be read.
    """

    name: str
    read: Callable[[], bytes | Image.Image | NDArray[Any]]


class Images(Protocol):
    """Images in order, and how many there are; None if that is known only at their end."""

    @property
    def total(self) -> int | None:
        """How many images there are."""

    def __iter__(self) -> Iterator[ImageSource]: ...


@dataclass(frozen=True, slots=True)
class AskedImages:
    """Images among several places, in order; see `asked_images`."""

    places: tuple[_Place, ...]
    total: int | None
    words: str  # as they were asked for

    def __iter__(self) -> Iterator[ImageSource]:
        """Yield every image.

        Raises:
            DataError: there is none; for standard input that is known only at its end.
        """
        is_empty = True
        for place in self.places:
            for source in place.images():
                is_empty = False
                yield source
        if is_empty:
            raise DataError("no images found", hint=f"Looked in {self.words}.")


@dataclass(frozen=True, slots=True)
class _Place:
    images: Callable[[], Iterable[ImageSource]]
    total: int | None


def asked_images(
    paths: Iterable[str | Path], *, column: str = AUTO, stdin: BinaryIO | None = None, on_event: OnEvent = ignore
) -> AskedImages:
    """Return the images among files, in folders (sorted within each), of patterns, in a column of tables, at addresses.

    "-" is standard input, where `stdin` is given: one image, or names of images, one a line. What
    folders hold that is not read is reported. A file or address named by a table or standard input is looked for only
    when it is read.

    Raises:
        DataError: a path does not exist, a table cannot be read, or there are no images at all.
        RecipeError: a table lacks the column.
    """
    words, others = list(map(str, paths)), Listing()
    if words.count(STDIN) > 1 and stdin is not None:
        raise RecipeError("standard input (-) is named twice", hint="It can be read only once.")
    if column != AUTO and not any(_is_table(Path(given)) for given in words):
        raise RecipeError(f"--column {column} is for tables, and no table is given", hint="Leave it out, or name one.")
    places = tuple(place for given in words for place in _places(given, column, stdin, others))
    counts = [place.total for place in places]
    total = None if None in counts else sum(count or 0 for count in counts)
    if total == 0:
        kinds = f" that can be read: {unread_note(others.unread)}" if others.unread else ""
        raise DataError(f"no images found{kinds}", hint=f"Looked in {', '.join(words)}.")
    for note in others.notes:
        on_event(Event.warning(note))
    if others.unread:
        on_event(Event.warning(unread_note(others.unread)))
    return AskedImages(places, total, ", ".join(words))


def missing_path(given: str, path: Path, *, expected: str) -> DataError:
    """Return the error of a path that is not there: an address, a pattern that nothing matched, or a misspelt name."""
    if address := address_of(given):
        if address.startswith("file://"):
            return DataError(f"{given} is an address", hint=f"Name the file itself: /{address.removeprefix('file://')}")
        return DataError(f"{address} is an address of an unsupported kind", hint="Download it first.")
    if set("*?[") & set(path.name):
        return DataError(f"nothing matches {given}", hint=f"See what is in {path.parent}. {expected}")
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return DataError(f"no such file or folder: {given}", hint=expected)
    near = did_you_mean(path.name, siblings).strip()
    return DataError(f"no such file or folder: {given}", hint=f"{near} {expected}".strip())


def _places(given: str, column: str, stdin: BinaryIO | None, others: Listing) -> list[_Place]:
    if shards_named(given) is not None:
        shards = list(looked_through(named_shards(given)))
        others.notes += [f"{name}: {member} {reason}" for name, shard in shards for member, reason in shard.problems]
        return [_Place(partial(_of_shard, name, shard), len(shard.entries)) for name, shard in shards]
    path = Path(given)
    if given == STDIN and stdin is not None:
        return [_Place(partial(_of_stdin, stdin), None)]
    if is_address(given):
        return [_Place(partial(_one, _at_address(given)), 1)]
    if not holds(path.exists):
        matches = sorted(glob(given, recursive=True)) if set("*?[") & set(given) else []  # noqa: PTH207
        if not matches:
            raise missing_path(given, path, expected=EXPECTED)
        return [place for match in matches for place in _of_match(match, column, others)]
    if holds(path.is_dir):
        total = sum(1 for _ in _of_folder(path, lambda names: count_unread(others, names)))
        return [_Place(partial(_of_folder, path), total)]
    if _is_table(path):
        return [_Place(partial(_of_table, path, check_column(path, column)), count_rows(path))]
    return [_Place(partial(_one, file_source(path)), 1)]


def _of_match(match: str, column: str, others: Listing) -> list[_Place]:
    """Return where the images of one match of a pattern are; a broken link is reported in its place."""
    if holds(Path(match).exists):
        return _places(match, column, None, others)
    return [_Place(partial(_one, file_source(Path(match))), 1)]


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and holds(path.is_file)


def _one(source: ImageSource) -> Sequence[ImageSource]:
    return (source,)


def file_source(path: Path, name: str | None = None) -> ImageSource:
    """Return the image in a file, by the name of the file unless it has another."""
    return ImageSource(str(path) if name is None else name, partial(read_content, path))


def _at_address(address: str) -> ImageSource:
    return ImageSource(address, partial(fetched, address))


def _of_folder(folder: Path, on_other: Callable[[list[str]], None] | None = None) -> Iterator[ImageSource]:
    unread: list[OSError] = []
    for name in walk(folder, unread.append, on_other):
        yield file_source(folder / name)
    for error in unread:  # so that they are reported in place of what they hold
        yield file_source(Path(error.filename))


def _of_shard(name: str, shard: Shard) -> Iterator[ImageSource]:
    for entry in shard.entries:
        yield ImageSource(f"{name}/{entry.name}", partial(read_member, name, entry.name))


def _of_table(table: Path, column: str) -> Iterator[ImageSource]:
    for number, cell in enumerate(image_cells(table, column), 2):
        if not cell:
            yield ImageSource(f"{table.name} line {number}", _nothing)
        elif isinstance(cell, bytes):
            yield ImageSource(f"{table.name} line {number}", partial(bytes, cell))
        elif is_address(cell):
            yield _at_address(cell)
        else:
            path = table.parent / cell
            plain = table.parent / unguarded_cell(cell)  # as the tool's own tables guard names against spreadsheets
            yield file_source(plain if plain != path and not holds(path.exists) else path)


def _nothing() -> bytes:
    raise UndecodableError("no image in its row")


def _of_stdin(stdin: BinaryIO) -> Iterator[ImageSource]:
    """Yield the one image that standard input holds, or those that its lines name."""
    head = b""
    while len(head) < HEAD and (line := stdin.readline()):
        head += line
    if any(begins_as(head, form) for form in FORMS) and not TEXT.issuperset(head[:HEAD]):
        yield ImageSource(STDIN_NAME, partial(bytes, head + stdin.read()))
        return
    for line in chain(io.BytesIO(head), stdin):
        name = os.fsdecode(line.rstrip(b"\r\n"))
        if is_address(name):
            yield _at_address(name)
        elif holds(Path(name).is_dir) and name:
            yield from _of_folder(Path(name))
        elif name:
            yield file_source(Path(name), name)
