"""The folder of several runs of one recipe, on the folds of its data or on other seeds.

several.json    folds or seeds, how many, what failed, and (last) how they came out
recipe.toml     what all runs share, as it was asked for      split.csv   the images, fold 1 as val
began.json      what they are compared with when resumed      runs/       a run folder for each fold or seed
report.html     all of them on one page
out_of_fold.csv, ensemble.json, exports/                      for folds: images by a run that never saw them; all as one
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from finetune.checkpoint.contents import read_as
from finetune.checkpoint.run_folder import RunFolder, is_unwritten, stopped_before, write_json
from finetune.errors import CheckpointError
from finetune.settings import FORMAT_VERSION

Kind = Literal["folds", "seeds"]


class SeveralRecord(BaseModel):
    """What several.json holds."""

    model_config = ConfigDict(strict=True)
    format_version: int = FORMAT_VERSION
    kind: Kind
    numbers: list[int] = Field(min_length=2)  # of the folds, from 1 on, or the seeds
    classes: list[InstanceOf[str]] = Field(min_length=1)
    failed: dict[str, dict[str, Any]] = {}  # reason and hint, by the name of the run
    results: dict[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        return self.results is not None and not self.failed

    def name(self, number: int) -> str:
        """Return the name of the run of a fold or a seed."""
        return f"{self.kind.removesuffix('s')}-{number}"

    def run(self, folder: RunFolder, number: int) -> RunFolder:
        """Return the run folder of a fold or a seed."""
        return RunFolder(folder.path / "runs" / self.name(number))

    def write(self, folder: RunFolder) -> None:
        """Write several.json.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder.several, self.model_dump())


def out_of_fold(folder: RunFolder) -> Path:
    """Return the file of what is said of each image by the run that had it in val."""
    return folder.path / "out_of_fold.csv"


def open_several(path: str | Path) -> tuple[RunFolder, SeveralRecord]:
    """Return an existing folder of several runs, and its several.json.

    Raises:
        CheckpointError: there is none at this path, or it is damaged or of another version.
    """
    folder = RunFolder(Path(path))
    if is_unwritten(folder):
        raise stopped_before(folder)
    if not folder.several.is_file():
        raise CheckpointError(
            f"{folder.path} is not a folder of several runs: it has no several.json",
            hint="Start some: finetune run DATA --folds 5, or --seeds 3.",
        )
    return folder, read_as(SeveralRecord, folder.several, has_format=True, what="several runs")
