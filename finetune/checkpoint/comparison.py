"""The comparison folder: its files, and the time of each run in it, epoch by epoch.

compare.json    who is compared, on which seeds, what failed, and (last) how it came out
recipe.toml     what all runs share, as it was asked for      split.csv   the images of every run
began.json      what a resumed comparison is compared with
runs/           a run folder for each strategy and seed       clocks/     seconds at the end of each epoch
compare.html    one page that opens offline
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from finetune.checkpoint.contents import read_as
from finetune.checkpoint.run_folder import RunFolder, is_unwritten, stopped_before, write_json
from finetune.errors import CheckpointError
from finetune.settings import FORMAT_VERSION
from finetune.types import Event
from finetune.whole import unwritable


class ComparisonRecord(BaseModel):
    """What compare.json holds: who is compared, what failed, and (last) how it came out."""

    model_config = ConfigDict(strict=True)
    format_version: int = FORMAT_VERSION
    strategies: list[str]
    seeds: list[int] = Field(min_length=1)
    classes: list[InstanceOf[str]] = Field(min_length=1)
    data: InstanceOf[str]
    failed: dict[str, dict[str, Any]] = {}  # strategy, seed, reason and hint, by the name of the run
    standings: list[Any] | None = None
    split: str | None = None
    num_images: int = 0
    said: list[str] = []

    @property
    def is_finished(self) -> bool:
        return self.standings is not None and not self.failed

    def write(self, folder: ComparisonFolder) -> None:
        """Write compare.json.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder.comparison, self.model_dump())


@dataclass(frozen=True, slots=True)
class ComparisonFolder(RunFolder):
    """The paths in a comparison folder."""

    @property
    def report(self) -> Path:
        return self.path / "compare.html"

    def run(self, name: str) -> RunFolder:
        """Return the run folder of one strategy and seed."""
        return RunFolder(self.path / "runs" / name)

    def clock(self, name: str) -> Path:
        """Return the file of the seconds of one run."""
        return self.path / "clocks" / f"{name}.jsonl"


def open_comparison(path: str | Path) -> tuple[ComparisonFolder, ComparisonRecord]:
    """Return an existing comparison folder and its compare.json.

    Raises:
        CheckpointError: there is none at this path, or of another version.
    """
    folder = ComparisonFolder(Path(path))
    if is_unwritten(folder):
        raise stopped_before(folder)
    if not folder.comparison.is_file():
        raise CheckpointError(
            f"{folder.path} is not a comparison folder: it has no compare.json",
            hint="Start one: finetune compare --data DIR --out FOLDER",
        )
    return folder, read_as(ComparisonRecord, folder.comparison, has_format=True, what="a comparison")


class Clock:
    """Records the seconds of a run at the end of each epoch; a resumed run adds to its earlier seconds."""

    def __init__(self, path: Path) -> None:
        """Append to the file at a path, or begin it.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        before = seconds_by_epoch(path)
        self.path, self.began = path, time.monotonic() - max(before.values(), default=0.0)

    def __call__(self, event: Event) -> None:
        """Take note of the end of an epoch.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        if event.kind == "epoch":
            row = {"epoch": event.facts["epoch"], "seconds": round(time.monotonic() - self.began, 3)}
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
            except OSError as error:
                raise unwritable(self.path, error) from error


def seconds_by_epoch(path: Path) -> dict[int, float]:
    """Return what a `Clock` wrote; of an epoch done twice the later end counts, and half a line not at all."""
    seconds: dict[int, float] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                seconds[int(row["epoch"])] = float(row["seconds"])
            except (ValueError, TypeError, KeyError):  # the machine stopped while it was written
                continue
    return seconds
