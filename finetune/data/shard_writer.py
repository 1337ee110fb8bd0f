"""A data set as tar shards (WebDataset): the files as they are, with their classes, splits and groups beside them.

    train-000000.tar  train-000001.tar  val-000000.tar  _info.json

Of each image three members with one key: the file, byte for byte; .cls, the number of its class; .json with its name
before (`filename`), `label`, `split`, `group` and content hash (`digest`). `_info.json` names the classes, and the
shards of each split as timm's reader wants them. Images are in a drawn order, so that neighbours are not of
one class. The same data gives the same bytes.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from finetune.errors import DataError, ResourceError
from finetune.images.files import read_content, stamp_of
from finetune.randomness import derive_each
from finetune.tasks import Labels, Target
from finetune.types import SPLITS, Event, Manifest, OnEvent, Sample, ignore
from finetune.whole import new_whole_folder, there_above
from finetune.wording import amount

FORMAT = 1
UNDIVIDED = "all"  # the name of shards of images without a split
USUAL = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}  # endings that other readers look for
INFO = "_info.json"
INTO_A_NEW = "Shards need a new folder: name one."
END = tarfile.RECORDSIZE  # bytes at most of zeros behind the last member


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards that were written: their folder, their names and how many images each has, by split; the classes."""

    folder: str
    shards: dict[str, dict[str, int]]
    num_bytes: int
    classes: tuple[str, ...]

    @property
    def num_images(self) -> int:
        return sum(sum(part.values()) for part in self.shards.values())


def write_shards(manifest: Manifest, out: Path, *, size: int, on_event: OnEvent = ignore) -> Shards:
    """Write a manifest as shards of at most `size` bytes (or one image) into a new folder, whole or not at all.

    Raises:
        ResourceError: the folder is not empty, another process writes it, or it cannot be written.
        DataError: an image cannot be read.
    """
    _check_room(manifest, out)
    shards: dict[str, dict[str, int]] = {}
    total = len(manifest.samples)
    with new_whole_folder(out, hint=INTO_A_NEW) as beside:
        for split in (None, *SPLITS):
            samples = _drawn([sample for sample in manifest.samples if sample.split == split])
            if samples:
                before = sum(sum(lengths.values()) for lengths in shards.values())
                name = split or UNDIVIDED
                shards[name] = _write_split(
                    manifest, samples, beside, name, size, partial(_tell, on_event, before, total)
                )
        (beside / INFO).write_text(json.dumps(_info(manifest, shards), indent=1, ensure_ascii=False), encoding="utf-8")
        num_bytes = sum(file.stat().st_size for file in beside.iterdir())
    return Shards(str(out), shards, num_bytes, manifest.classes)


def new_tar(place: Path) -> tarfile.TarFile:
    """Return a tar to be written."""
    return tarfile.open(place, "w", format=tarfile.USTAR_FORMAT)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Write a file without owner and time into a tar."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    tar.addfile(head, io.BytesIO(content))
    tar.members.clear()  # type: ignore[attr-defined]  # else all of them stay


def _tell(on_event: OnEvent, before: int, total: int, done: int) -> None:
    on_event(Event.progress("write shards", before + done, total))


def _drawn(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples in a random order that depends on their names."""
    order = np.argsort(derive_each(0, "shard", [sample.file for sample in samples]), kind="stable")
    return [samples[place] for place in order.tolist()]


def _write_split(
    manifest: Manifest, samples: Sequence[Sample], folder: Path, name: str, size: int, on_done: Callable[[int], None]
) -> dict[str, int]:
    """Write the shards of one split, and return how many images each has."""
    lengths: dict[str, int] = {}
    with ExitStack() as stack:
        file, tar = "", None
        for number, sample in enumerate(samples):
            members = _members(manifest, sample, f"{number:09d}")
            needed = sum(_padded(len(content)) for content in members.values())
            if tar is None or tar.offset + needed + END > size:
                stack.close()
                file = f"{name}-{len(lengths):06d}.tar"
                tar = stack.enter_context(new_tar(folder / file))
                lengths[file] = 0
            for member, content in members.items():
                add_member(tar, member, content)
            lengths[file] += 1
            on_done(number + 1)
    return lengths


def _members(manifest: Manifest, sample: Sample, key: str) -> dict[str, bytes]:
    """Return what is written of an image, by name.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = read_content(Path(manifest.root, sample.file))
    except OSError as error:
        raise DataError(f"{sample.file}: cannot be read: {error.strerror or error}") from error
    ending = PurePath(sample.file).suffix.lower()
    label: Any = manifest.label(sample.target)
    if isinstance(sample.target, Labels):
        label = [manifest.classes[index] for index in sample.target.classes]
    about = {"filename": sample.file, "label": label, "split": sample.split, "group": sample.group}
    about["digest"] = blake2b(content, digest_size=16).hexdigest()
    text = json.dumps({name: value for name, value in about.items() if value is not None}, ensure_ascii=True)
    members = {f"{key}{USUAL.get(ending, ending)}": content}
    if isinstance(sample.target, Target):
        members[f"{key}.cls"] = str(sample.target.index).encode()
    return {**members, f"{key}.json": text.encode()}


def _info(manifest: Manifest, shards: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return what stands beside shards, in the form of timm's reader."""
    splits = {
        name: {
            "name": name,
            "num_samples": sum(lengths.values()),
            "filenames": list(lengths),
            "shard_lengths": list(lengths.values()),
        }
        for name, lengths in shards.items()
    }
    return {"format_version": FORMAT, "task": manifest.task, "classes": list(manifest.classes), "splits": splits}


def _check_room(manifest: Manifest, out: Path) -> None:
    """Check that there is room for shards before any is written.

    Raises:
        ResourceError: there is none. DataError: an image is no longer there.
    """
    needed = 0
    for sample in manifest.samples:
        try:
            needed += _padded(stamp_of(Path(manifest.root, sample.file))[0]) + 4 * tarfile.BLOCKSIZE
        except OSError as error:
            raise DataError(f"{sample.file}: cannot be read: {error.strerror or error}") from error
    free = shutil.disk_usage(there_above(out)).free
    if needed > free:
        raise ResourceError(
            f"{out}: the shards take {amount(needed)}, and {amount(free)} are free",
            hint="Name a folder on another disk.",
        )


def _padded(size: int) -> int:
    """Return the bytes that a member takes, including its header."""
    return tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
