"""What the files of a run folder must hold before a run goes on, is compared, or is shown in a report.

They were written by the tool, but lie where anybody may write: what is missing or of another type costs one
error that names the file, and that is checked before training goes on, not after it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import InstanceOf, TypeAdapter, ValidationError

from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.checkpoint.state import check_format
from finetune.csv_cells import unguarded_cell
from finetune.errors import CheckpointError
from finetune.tasks import Scale
from finetune.types import Evidence, Phase, Problem, Verdict
from finetune.wording import meaning

PROBLEMS = ("file", "reason")  # columns of problems.csv
Text = InstanceOf[str]  # names of files may be any bytes, which pydantic's own strings may not
Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Beginning:
    """began.json: what a resumed run is compared with, and the changes that were allowed since."""

    recipe: dict[str, Any]
    versions: dict[str, str]
    weights: str
    threads: int
    allowed: list[Text]
    processes: int = 1

    def __post_init__(self) -> None:
        strange = [
            name for name, part in self.recipe.items() if not isinstance(part, dict) and name != "format_version"
        ]
        if strange:
            raise ValueError(f"recipe.{strange[0]} is no section of a recipe")


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A layer group as plan.json lists it."""

    name: str
    num_parameters: int


@dataclass(frozen=True, slots=True)
class PlanFile:
    """plan.json, but for the class names (`read_classes`)."""

    data: Text
    groups: tuple[PlannedGroup, ...]
    phases: tuple[Phase, ...]
    notes: tuple[Text, ...]
    scale: Scale | None = None

    def __post_init__(self) -> None:
        strange = {item.group for phase in self.phases for item in phase.plan.groups} - set(self.sizes)
        if strange:
            raise ValueError(f"no layer group {min(strange)!r}")

    @property
    def sizes(self) -> dict[str, int]:
        return {group.name: group.num_parameters for group in self.groups}


@dataclass(frozen=True, slots=True)
class Measured:
    """evidence.json: what was measured, and what followed from it."""

    evidence: Evidence
    verdict: Verdict

    def __post_init__(self) -> None:
        if self.evidence.size.num_classes < 1:
            raise ValueError("no classes")


@dataclass(frozen=True, slots=True)
class Packages:
    """The versions that a report names."""

    finetune: str
    torch: str
    timm: str


@dataclass(frozen=True, slots=True)
class Environment:
    """environment.json, as far as it is read again."""

    packages: Packages


def read_as(kind: type[Content], path: Path, *, has_format: bool = False, what: str = "what it should") -> Content:
    """Return what a JSON file of a run folder holds; `has_format` says that it names its format_version.

    Raises:
        CheckpointError: it is missing, damaged, or of a version that this one does not read.
    """
    content = read_json(path)
    if has_format and isinstance(content, dict):
        check_format(path, content.get("format_version"))
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or ("" if first["type"] == "value_error" else "what it holds")
        raise _damaged(path, f"{where} {meaning(first)}".strip(), what=what) from error


def read_problems(path: Path) -> list[Problem]:
    """Return what problems.csv lists.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            columns, *rows = list(csv.reader(stream))
        if tuple(columns) != PROBLEMS:
            raise ValueError("its columns differ")
        return [Problem(unguarded_cell(file), unguarded_cell(reason)) for file, reason in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str, *, what: str = "what it should") -> CheckpointError:
    folder = RunFolder(path.parent)
    return CheckpointError(f"{path} does not hold {what}: {reason}", hint=f"Put it back, or {folder.anew}")
