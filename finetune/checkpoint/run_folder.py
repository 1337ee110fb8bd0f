"""The run folder: the names of everything one run leaves behind, and writing it whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError, ResourceError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places in a run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def split(self) -> Path:
        return self.path / "split.csv"

    @property
    def problems(self) -> Path:
        return self.path / "problems.csv"

    @property
    def evidence(self) -> Path:
        return self.path / "evidence.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def epochs(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def race(self) -> Path:
        return self.path / "race.json"

    @property
    def timing(self) -> Path:
        return self.path / "timing.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def is_finished(self) -> bool:
        """Tell whether the run came to its end: metrics.json is written last."""
        return self.metrics.is_file()


def create(out: Path | None, *, words: Iterable[str]) -> RunFolder:
    """Make a run folder: `out` (new or empty), else runs/<date-time>-<words>.

    Raises:
        ResourceError: `out` holds something already, or the place cannot be written.
    """
    path = out or _free(Path("runs") / "-".join([datetime.now().strftime("%Y-%m-%d-%H%M"), *map(_slug, words)]))
    try:
        path.mkdir(parents=True, exist_ok=True)
        check_new(path)
        return RunFolder(path)
    except OSError as error:
        raise ResourceError(
            f"the run folder {path} cannot be written: {error.strerror}", hint="Give another with --out."
        ) from error


def check_new(out: Path) -> None:
    """See, before any work is done, that a run folder can be made at `out`.

    Raises:
        ResourceError: it holds something already, or cannot be written.
    """
    there = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ResourceError(
            f"the run folder {out} cannot be made: {there} is no folder that can be written",
            hint="Give another with --out.",
        )
    if out.is_dir() and any(out.iterdir()):
        raise ResourceError(
            f"{out} is not empty",
            hint=f"Give a new folder with --out, or go on with that run: finetune run --resume {out}",
        )


def open_run(path: str | Path) -> RunFolder:
    """Yield an existing run folder.

    Raises:
        CheckpointError: there is none at this path.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise CheckpointError(f"no run folder {folder.path}", hint=_runs_there())
    if not folder.recipe.is_file():
        raise CheckpointError(f"{folder.path} is no run folder: it has no recipe.toml", hint=_runs_there())
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside its place and rename it, so that no half of it is ever seen."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ResourceError(f"{path} cannot be written: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Yield the content of a JSON file of a run folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _free(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _slug(word: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", word).strip("._") or "x"


def _runs_there() -> str:
    runs = sorted(Path("runs").glob("*/recipe.toml"), key=lambda path: path.stat().st_mtime)
    return f"The newest here is {runs[-1].parent}." if runs else ""
