"""race.json: who started, at which epochs the rungs are, what each showed, who failed, who won, what it took.

The tool writes it, but anybody may change it: names become folders, so they are checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from finetune.checkpoint.contents import read_as
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.settings import FORMAT_VERSION


def _bare(label: str) -> str:
    if Path(label).name != label or label in (".", ".."):
        raise ValueError("no name of a candidate")
    return label


Label = Annotated[str, AfterValidator(_bare)]


class RecordedWork(BaseModel):
    """The forward passes of each epoch of a candidate, the images they are counted over, and their weight."""

    model_config = ConfigDict(strict=True)
    epochs: list[float] = Field(min_length=1)
    num_images: int
    gmacs: float = 1.0


class RecordedPlace(BaseModel):
    """Where a candidate stood at a rung."""

    model_config = ConfigDict(strict=True)
    label: Label
    epochs: int
    val_score: float = Field(validation_alias=AliasChoices("val_score", "val_top1"))  # top1, mAP or R2
    val_loss: float
    is_kept: bool


class RecordedRung(BaseModel):
    """What a rung showed, the best first."""

    model_config = ConfigDict(strict=True)
    epochs: int
    places: list[RecordedPlace]


class RankedBackbone(BaseModel):
    """The predicted score of a linear classifier on a backbone's frozen features, with its interval."""

    model_config = ConfigDict(strict=True)
    name: str
    gmacs: float
    predicted: float
    low: float
    high: float


class RaceRecord(BaseModel):
    """What race.json holds."""

    model_config = ConfigDict(strict=True, validate_assignment=True)
    format_version: int = FORMAT_VERSION
    starts: list[Label] = Field(min_length=1)
    rungs: list[Annotated[int, Field(ge=1)]]
    left_out: dict[str, str] = {}  # why, by label
    work: dict[Label, RecordedWork]
    results: list[RecordedRung] = []
    failed: dict[str, str] = {}  # why, by label
    winner: Label | None = None
    ranking: list[RankedBackbone] = []  # where backbones race, the best predicted first
    num_val: Annotated[int, Field(ge=1)] = 1
    took: dict[str, float] | None = None  # planned work: of the winner alone, of the others, their ratio

    @model_validator(mode="after")
    def _is_a_race(self) -> RaceRecord:
        is_known = not self.rungs or set(self.starts) <= set(self.work)
        if not is_known or self.winner not in (None, *self.starts):
            raise ValueError("names that did not start")
        if self.winner is None and not self.rungs and len(self.starts) > 1:
            raise ValueError("no rungs")
        return self

    def write(self, folder: RunFolder) -> None:
        """Write race.json.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder.race, self.model_dump())


def open_race(folder: RunFolder) -> RaceRecord:
    """Return race.json.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    return read_as(RaceRecord, folder.race, has_format=True, what="a race")
