"""The folder of a search: what is searched, how, what was seen before the first trial, and who won.

tune.json     the space, the sampler, the budget, what the checks showed, and (last) the winner
recipe.toml   what all trials share, as it was asked for      split.csv     the images, those of test left out
study.sqlite  the trials, unless a storage is named           workers/      locks of the processes at work
winner.toml   the recipe of the winner: finetune run --recipe FOLDER/winner.toml
report.html   the checks, the trials and what each value brought
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from finetune.checkpoint.contents import read_as
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.errors import CheckpointError
from finetune.settings import FORMAT_VERSION


class TuneRecord(BaseModel):
    """What tune.json holds."""

    model_config = ConfigDict(strict=True)
    format_version: int = FORMAT_VERSION
    name: str  # of the search in its storage
    storage: str | None = None  # a URL; None: study.sqlite
    space: dict[str, Any]
    sampler: Literal["random", "grid", "tpe"]
    seed: int
    trials: int = Field(ge=3)
    seconds: float | None = None
    epochs: int  # of a whole run
    classes: list[InstanceOf[str]] = Field(min_length=1)
    pinned: dict[str, Any]  # what auto decided, once for all trials
    usual: dict[str, Any] | None = None  # how the recipe does without a search
    checks: list[str] | None = None
    results: dict[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        return self.results is not None

    def write(self, folder: RunFolder) -> None:
        """Write tune.json.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder.tuning, self.model_dump())


def winner_of(folder: RunFolder) -> Path:
    """Return where the recipe of the winner lies."""
    return folder.path / "winner.toml"


def open_tuning(path: str | Path) -> tuple[RunFolder, TuneRecord]:
    """Return an existing folder of a search, and its tune.json.

    Raises:
        CheckpointError: there is none at this path, or it is damaged or of another version.
    """
    folder = RunFolder(Path(path))
    if not folder.tuning.is_file() or not folder.recipe.is_file():
        raise CheckpointError(
            f"{folder.path} is not a search folder: it has no tune.json with a recipe.toml",
            hint="Start one: finetune tune --data DIR --out FOLDER",
        )
    return folder, read_as(TuneRecord, folder.tuning, has_format=True, what="a search")
