"""Files of this machine and of object stores, read in parts: what is there, when it changed, some of its bytes.

Whatever has a scheme (s3://, gs://, https://) is read by fsspec, which finds credentials where its libraries look for
them; everything else is a path.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from hashlib import blake2b
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any

from finetune.errors import DataError

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL | re.IGNORECASE)  # longer than the letter of a drive
AHEAD = 2**23  # bytes that are asked for at once where a whole file is gone through


class StoreError(OSError):
    """When a store does not answer, or refuses."""


def address_of(text: str) -> str | None:
    """Return an address as stores know it, even if a Path has folded its //; None for a path of this machine."""
    match = SCHEME.fullmatch(text)
    return f"{match[1].lower()}://{match[2]}" if match else None


def whole_place(place: str | Path) -> str:
    """Return an address, or a path from the root of this machine."""
    return address_of(Path(place).as_posix()) or str(Path(place).absolute())


def stamp(place: str) -> tuple[int, int]:
    """Return the size of a file in bytes, and a number that changes with it.

    Raises:
        OSError: it is not there, or cannot be asked.
    """
    if address_of(place) is None:
        stat = Path(place).stat()
        return stat.st_size, stat.st_mtime_ns
    with _as_os_error():
        store, path = _store(place)
        about = str(store.ukey(path)).encode()
        return int(store.info(path)["size"]), int.from_bytes(blake2b(about, digest_size=7).digest())


def read_range(place: str, start: int, size: int) -> bytes:
    """Return some bytes of a file, fewer if it ends before.

    Raises:
        OSError: it cannot be read.
    """
    if address_of(place) is None:
        with Path(place).open("rb") as stream:
            stream.seek(start)
            return stream.read(size)
    with _as_os_error():
        store, path = _store(place)
        return bytes(store.cat_file(path, start=start, end=start + size))


@contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """Open a file to be read from beginning to end.

    Raises:
        OSError: it cannot be read.
    """
    if address_of(place) is None:
        with Path(place).open("rb") as stream:
            yield stream
        return
    with _as_os_error():
        store, path = _store(place)
        with store.open(path, "rb", block_size=AHEAD, cache_type="readahead") as stream:
            yield stream


def matches(pattern: str) -> list[str]:
    """Return what a pattern with * matches, or every .tar below a folder, sorted; nothing that is hidden.

    Raises:
        OSError: it cannot be asked.
    """
    if address_of(pattern) is not None:
        with _as_os_error():
            return sorted(_matches_in_store(pattern.rstrip("/")))
    place = Path(pattern)
    if place.is_dir():
        return sorted(file.as_posix() for file in place.rglob("*.tar") if not _is_hidden(file.relative_to(place)))
    return sorted(glob(pattern, recursive=True)) if "*" in pattern else [pattern]  # noqa: PTH207


def _matches_in_store(pattern: str) -> Iterator[str]:
    """Yield the addresses of what a pattern matches, each with the beginning that the pattern has."""
    store, path = _store(pattern)
    if "*" not in pattern and pattern.endswith(".tar"):
        yield from [pattern] * store.exists(path)
        return
    if "*" not in pattern:
        pattern, path = f"{pattern}/**/*.tar", f"{path.rstrip('/')}/**/*.tar"
    beginning, fixed = (text.partition("*")[0].rpartition("/")[0] for text in (pattern, path))
    for name in store.glob(path):
        below = name[len(fixed) :]  # a store may leave its host out of names, or begin them with /
        if not _is_hidden(PurePosixPath(below)):
            yield f"{beginning}{below}"


def _is_hidden(place: PurePath) -> bool:
    """Return whether a name below a folder is hidden, or in a folder that is, as what is still being written."""
    return any(part.startswith(".") for part in place.parts)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn whatever the libraries of a store raise into an OSError with their message.

    Raises:
        FileNotFoundError: there is no such file. StoreError: for any other reason.
    """
    try:
        yield
    except (FileNotFoundError, StoreError, DataError):
        raise
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise StoreError(errno.EIO, said or f"{type(error).__name__}: {error}") from error


def _store(place: str) -> tuple[Any, str]:
    """Return the file system of an address, one for each process, and the path in it.

    Raises:
        DataError: the library for it is missing.
    """
    address = address_of(place) or place
    try:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        hint = 'pip install "finetune[remote]", and for other stores than S3 the library that fsspec names.'
        raise DataError(f"{address}: {error}", hint=hint) from error
    except ValueError as error:
        raise DataError(f"{address}: {error}", hint="Known are fsspec's stores: s3://, gs://, https://.") from error
    return store, path


def is_there(place: str) -> bool:
    """Return whether there is a file at a path of this machine."""
    try:
        return os.path.isfile(place)  # noqa: PTH113
    except ValueError:
        return False
