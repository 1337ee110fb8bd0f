"""race.json: who started, at which epochs the rungs are, what each showed, who failed, who won, what it took.

Written by the tool, but it lies where anybody may write: names become folders, so they are checked.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.checkpoint.state import check_format
from finetune.errors import CheckpointError


def _bare(label: str) -> str:
    if Path(label).name != label or label in (".", ".."):
        raise ValueError("no name of a candidate")
    return label


Label = Annotated[str, AfterValidator(_bare)]


class _Work(BaseModel):
    model_config = ConfigDict(strict=True)
    epochs: list[float] = Field(min_length=1)
    num_images: int


class _Content(BaseModel):
    """What must hold of race.json before a race goes on with it."""

    model_config = ConfigDict(strict=True, extra="allow")
    starts: list[Label] = Field(min_length=1)
    rungs: list[Annotated[int, Field(ge=1)]]
    work: dict[Label, _Work]
    winner: Label | None


def open_race(folder: RunFolder) -> dict[str, Any]:
    """Return race.json.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    content = read_json(folder.race)
    if not isinstance(content, dict):
        raise _damaged(folder)
    check_format(folder.race, content.get("format_version"))
    try:
        found = _Content.model_validate(content)
    except ValidationError as error:
        raise _damaged(folder) from error
    is_known = not found.rungs or set(found.starts) <= set(found.work)
    if not is_known or found.winner not in (None, *found.starts):
        raise _damaged(folder)
    if found.winner is None and not found.rungs and len(found.starts) > 1:
        raise _damaged(folder)
    return content


def _damaged(folder: RunFolder) -> CheckpointError:
    return CheckpointError(
        f"{folder.race} does not hold a race: it is damaged",
        hint=f"Start it again: finetune run --recipe {shlex.quote(str(folder.asked))}",
    )
