"""Images inside tar shards (WebDataset): which there are, where each is, and its bytes.

An image in a shard has a path like that of any file, SHARD.tar/MEMBER, on this machine or in an object store. One pass
over the heads of a shard's members tells where they lie; that is kept until the shard has another size or time:

    CACHE/shards/HASH.npz     of one shard: the hash of every image's name, its place and size; its labels; problems

What is not covered: compressed shards (.tar.gz), in which nothing can be found without unpacking what lies before.
"""

from __future__ import annotations

import errno
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.cache_dir import cache_folder
from finetune.errors import ResourceError
from finetune.images.names import EXTENSIONS, LARGEST_FILE
from finetune.images.stores import AHEAD, address_of, is_there, opened, read_range, stamp, whole_place
from finetune.whole import whole_file

FORMAT = 1  # of what is kept of a shard
SUFFIX = ".tar"
FIELDS = ("cls", "json")  # members beside an image that say what it shows
LARGEST_FIELD = 2**20  # bytes of one of them
CLOSE = 2**20  # bytes between a read and one that follows it: what other threads have asked for
IN_A_ROW = 3  # reads after which more is asked for than is wanted: in a drawn order two may be close by chance


@dataclass(slots=True)
class Entry:
    """An image of a shard, and what is beside it: the contents of its .cls and .json, empty if there is none."""

    name: str
    cls: str = ""
    json: str = ""


@dataclass(slots=True)
class Shard:
    """Where the images of a shard are, and what was wrong with it: (member, reason), "" for the shard itself."""

    changed: tuple[int, int]
    keys: NDArray[np.uint64]  # (N,): hashes of the names, in their own order
    places: NDArray[np.int64]  # (N, 2): offset and size
    entries: list[Entry] = field(default_factory=list)  # in the order of the shard; for listing alone
    problems: list[tuple[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # members that are not read, by the ends of their names

    def place(self, name: str) -> tuple[int, int]:
        """Return offset and size of an image.

        Raises:
            FileNotFoundError: it is not in the shard.
        """
        key = _key(name)
        at = int(np.searchsorted(self.keys, key))
        if at == len(self.keys) or self.keys[at] != key:
            raise FileNotFoundError(errno.ENOENT, "no such image in its shard")
        offset, size = self.places[at].tolist()
        return offset, size


def in_shard(path: Path) -> tuple[str, str] | None:
    """Return the shard and the member that a path names; None if it is not an image in a shard."""
    text = path.as_posix()
    start = text.find(f"{SUFFIX}/")
    while start >= 0:
        shard, member = text[: start + len(SUFFIX)], text[start + len(SUFFIX) + 1 :]
        address = address_of(shard)
        if address is not None or is_there(shard):
            return address or shard, member
        start = text.find(f"{SUFFIX}/", start + 1)
    return None


def read_member(shard: str, name: str) -> bytes:
    """Return the bytes of an image in a shard.

    Raises:
        OSError: the shard or the image in it is not there, or cannot be read.
    """
    offset, size = _known(shard).place(name)
    if size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"a file of {size / 2**30:.1f} GiB is not an image")
    content = _ahead.read(shard, offset, size) if address_of(shard) else read_range(shard, offset, size)
    if len(content) < size:
        raise OSError(errno.EIO, "the shard ends within this image")
    return content


def member_stamp(shard: str, name: str) -> tuple[int, int]:
    """Return the size of an image in a shard, and a number that changes with the shard.

    Raises:
        OSError: the shard or the image in it is not there.
    """
    known = _known(shard)
    offset, size = known.place(name)
    return size, known.changed[1] ^ offset


def shard_of(place: str) -> Shard:
    """Return the content of a shard, as kept, or else from a pass over it.

    Raises:
        OSError: it is not there, or cannot be read at all.
    """
    changed = stamp(place)
    return _load(place, changed, is_listed=True) or _looked_up(place, changed)


def news_of(place: str) -> Shard | None:
    """Return the content of a shard, from a pass over it; None if that is kept already.

    Raises:
        OSError: it is not there, or cannot be read at all.
    """
    changed = stamp(place)
    return None if _load(place, changed, is_listed=False) else _looked_up(place, changed)


def keep_news(place: str, shard: Shard) -> None:
    """Keep what another process has found in a shard, unless that is known here."""
    if _load(place, shard.changed, is_listed=False) is None:
        _save(place, shard)


def _looked_up(place: str, changed: tuple[int, int]) -> Shard:
    """Go through a shard, and keep where its images are."""
    shard = _looked_through(place, changed)
    _save(place, shard)
    return shard


_shards: dict[str, Shard] = {}
_lock = threading.Lock()


def _known(place: str) -> Shard:
    """Return a shard without its labels, remembered by this process; a changed file is looked up again."""
    with _lock:
        known = _shards.get(place)
        if known is None or (address_of(place) is None and stamp(place) != known.changed):
            changed = stamp(place)
            found = _load(place, changed, is_listed=False) or _looked_up(place, changed)
            known = _shards[place] = Shard(found.changed, found.keys, found.places)
        return known


def _looked_through(place: str, changed: tuple[int, int]) -> Shard:
    entries: dict[str, Entry] = {}
    found: dict[str, tuple[int, int]] = {}
    shard = Shard(changed, np.empty(0, np.uint64), np.empty((0, 2), np.int64))
    fields: dict[str, dict[str, str]] = {}
    with opened(place) as stream:
        for name, key, kind, member, text in _members(stream, shard):
            if name in found or kind in fields.get(key, {}):
                shard.problems.append((name, "is twice in its shard; the first counts"))
            elif f".{kind}" in EXTENSIONS and key in entries:
                shard.problems.append((name, f"has the key of {entries[key].name}, which counts"))
            elif f".{kind}" in EXTENSIONS:
                entries[key], found[name] = Entry(name), (member.offset_data, member.size)
            elif kind in FIELDS:
                fields.setdefault(key, {})[kind] = text
            else:
                shard.others[kind] += 1
    for key, entry in entries.items():
        own = fields.pop(key, {})
        entry.cls, entry.json = own.get("cls", ""), own.get("json", "")
    shard.problems += [(key, f"has a .{' and a .'.join(own)}, and no image") for key, own in fields.items()]
    if not entries and not shard.problems:
        shard.problems.append(("", "holds no image"))
    shard.entries = list(entries.values())
    keys = np.array([_key(name) for name in found], dtype=np.uint64)
    order = np.argsort(keys)
    shard.keys, shard.places = keys[order], np.array(list(found.values()), dtype=np.int64).reshape(-1, 2)[order]
    return shard


def _members(stream: Any, shard: Shard) -> Iterator[tuple[str, str, str, tarfile.TarInfo, str]]:
    """Yield the files in a tar with key, kind, and the text of labels; note where it breaks off.

    The key is all before the first dot of the name without folders, the kind all behind it.
    """
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # else all of them stay
                end = member.offset_data + member.size
                name = PurePosixPath(member.name.lstrip("/")).as_posix()
                folder, slash, base = name.rpartition("/")
                stem, _, kind = base.partition(".")
                if member.isreg() and stem:
                    text = _text(tar, member) if kind.lower() in FIELDS else ""
                    yield name, f"{folder}{slash}{stem}", kind.lower(), member, text
            if shard.changed[0] < end + tarfile.BLOCKSIZE:
                shard.problems.append(("", "is cut off; what comes before is read"))
    except (tarfile.TarError, EOFError) as error:
        reason = "is compressed: unpack it" if not end and _is_compressed(stream) else f"is damaged: {error}"
        shard.problems.append(("", f"{reason}; what comes before is read" if end else reason))


def _is_compressed(stream: Any) -> bool:
    stream.seek(0)
    start: bytes = stream.read(6)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    return content.read(LARGEST_FIELD).decode("utf-8", "replace") if content else ""


def _key(name: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest())


def _file(place: str) -> Path:
    name = blake2b(os.fsencode(whole_place(place)), digest_size=12).hexdigest()
    return cache_folder() / "shards" / f"{name}.npz"


def _format() -> list[int | str]:
    """Return the format of what is kept of a shard, with the names that were taken for images."""
    return [FORMAT, *sorted(EXTENSIONS)]


def _load(place: str, changed: tuple[int, int], *, is_listed: bool) -> Shard | None:
    """Return what is kept of a shard, with labels if it is to be listed; None if nothing is, or it has changed."""
    try:
        with np.load(_file(place), allow_pickle=False) as kept:
            about = json.loads(kept["about"].tobytes())
            if about["format"] != _format() or tuple(about["changed"]) != changed:
                return None
            problems = [(name, reason) for name, reason in about["problems"]]
            rows = json.loads(kept["entries"].tobytes()) if is_listed else []
            entries = [Entry(*row) for row in rows]
            return Shard(changed, kept["keys"], kept["places"], entries, problems, Counter(about["others"]))
    except Exception:  # whatever a damaged file raises: it is looked through again
        return None


def _save(place: str, shard: Shard) -> None:
    """Keep the content of a shard, if the disk allows."""
    rows = [[entry.name, entry.cls, entry.json] for entry in shard.entries]
    about = {"format": _format(), "changed": shard.changed, "problems": shard.problems, "others": shard.others}
    texts = {"about": about, "entries": rows}
    arrays: dict[str, Any] = {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
    with suppress(ResourceError), whole_file(_file(place), is_shared=True) as beside, beside.open("wb") as stream:
        np.savez(stream, keys=shard.keys, places=shard.places, **arrays)


class _Ahead:
    """The last bytes read from a remote shard: images read in sequence come in one large piece."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shard, self.end, self.in_a_row = "", 0, 0
        self.start, self.piece = 0, b""

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Return some bytes of a shard; reads in sequence fetch more than asked for."""
        with self.lock:
            if shard != self.shard:
                self.shard, self.in_a_row, self.piece = shard, 0, b""
            self.in_a_row = self.in_a_row + 1 if abs(offset - self.end) <= CLOSE else 0
            self.end = offset + size
            if not (self.start <= offset and self.end <= self.start + len(self.piece)):
                if self.in_a_row < IN_A_ROW:
                    return read_range(shard, offset, size)
                self.start, self.piece = offset, read_range(shard, offset, max(size, AHEAD))
            return self.piece[offset - self.start :][:size]


_ahead = _Ahead()
