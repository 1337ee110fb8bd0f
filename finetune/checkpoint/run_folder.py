"""The run folder: the paths of everything one run leaves behind, and writing it whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import ranks
from finetune.errors import CheckpointError, ResourceError
from finetune.whole import beside_of, is_vacant, old_of, there_above, write_text

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in a run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def asked(self) -> Path:
        """The recipe as it was asked for, until the resolved one stands."""
        return self.path / "asked.toml"

    @property
    def began(self) -> Path:
        return self.path / "began.json"

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
    def cached(self) -> Path:
        """Which phases train on the feature cache, and which do not, as each began."""
        return self.path / "cached.json"

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
    def known(self) -> Path:
        """What the classifier knows, for `predict --unsure`."""
        return self.path / "known.safetensors"

    @property
    def race(self) -> Path:
        return self.path / "race.json"

    @property
    def candidates(self) -> Path:
        """Where the candidates of a race have their run folders."""
        return self.path / "race"

    @property
    def comparison(self) -> Path:
        """What makes this the folder of a comparison."""
        return self.path / "compare.json"

    @property
    def several(self) -> Path:
        """What makes this the folder of several runs of one recipe, on other folds or seeds."""
        return self.path / "several.json"

    @property
    def tuning(self) -> Path:
        """What makes this the folder of a search for hyperparameters."""
        return self.path / "tune.json"

    @property
    def what(self) -> str:
        """What can be resumed here, in words."""
        kinds = {self.comparison: "comparison", self.several: "set", self.tuning: "search"}
        return next((what for place, what in kinds.items() if place.is_file()), "run")

    @property
    def holds_runs(self) -> bool:
        """Whether this is the folder of several runs that share one recipe."""
        return self.what != "run"

    @property
    def ensemble(self) -> Path:
        """What makes this the folder of an ensemble, which is one ONNX file of several runs."""
        return self.path / "ensemble.json"

    @property
    def refit(self) -> RunFolder:
        """Where a refit has its checkpoints and epochs."""
        return RunFolder(self.path / "refit")

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
    def weights(self) -> Path:
        """The weights in it."""
        return self.model / "model.safetensors"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def laid(self) -> tuple[Path, ...]:
        """What stands in the folder before the first step; recipe.toml is written last and makes it a run folder."""
        return (
            self.asked, self.split, self.problems, self.plan, self.evidence, self.environment, self.began,
            self.comparison, self.several, self.tuning, self.race, self.recipe,
        )  # fmt: skip

    @property
    def later(self) -> tuple[Path, ...]:
        """What is written into the folder from the first step on, but for checkpoints."""
        pages = (self.report, self.path / "compare.html")
        return (self.cached, self.epochs, self.metrics, self.predictions, self.timing, self.model, *pages)

    @property
    def is_laid(self) -> bool:
        """Whether everything is written that is known before the first step: there is something to resume."""
        return self.recipe.is_file() or self.race.is_file()

    @property
    def is_racing(self) -> bool:
        """Whether this is a race whose winner has not taken its place yet."""
        return self.race.is_file() and not self.recipe.is_file()

    @property
    def command(self) -> str:
        """The command that resumes what is here."""
        if self.tuning.is_file():
            return "finetune tune"
        return "finetune compare" if self.comparison.is_file() else "finetune run"

    @property
    def resuming(self) -> str:
        """The command that resumes what was begun here, as typed."""
        return f"{ranks.launcher()}{self.command} --resume {shlex.quote(str(self.path))}"

    @property
    def anew(self) -> str:
        """How to start again; an unfinished race has its recipe only as it was asked for."""
        recipe = self.asked if self.is_racing else self.recipe
        flags = " --folds K (or --seeds N)" if self.several.is_file() else ""
        return f"start a new {self.what}: {ranks.launcher()}{self.command} --recipe {shlex.quote(str(recipe))}{flags}"

    @property
    def is_begun(self) -> bool:
        """Whether a recipe that was asked for is here; without one a killed process has left nothing."""
        return self.is_laid or self.asked.is_file()

    def leftovers(self) -> Iterator[Path]:
        """Yield what a killed process had begun to write, and what a lock left while it was tried."""
        for place in (*self.laid, *self.later):
            yield from (left for left in (beside_of(place), old_of(place)) if left.exists())
        yield from self.path.glob(".filelock-*")
        yield from self.last.parent.glob(".*")
        yield from self.refit.last.parent.glob(".*")

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished: metrics.json is written last."""
        return self.metrics.is_file()


def check_new(out: Path) -> None:
    """Check, before any work is done, that a run folder can be made at `out`.

    Raises:
        ResourceError: it holds something already, or cannot be written.
    """
    if not is_utf8(str(out)):
        raise ResourceError(
            f"the run folder {out} cannot be made: its name is not UTF-8, as safetensors requires",
            hint="Give another with --out.",
        )
    there = there_above(out)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ResourceError(
            f"the run folder {out} cannot be made: {there} is not a writable folder",
            hint="Give another with --out.",
        )
    if out.is_dir() and not is_unwritten(RunFolder(out)):
        is_run = RunFolder(out).recipe.is_file() or RunFolder(out).asked.is_file()
        go_on = f", or resume it: {RunFolder(out).resuming}" if is_run else "."
        raise ResourceError(f"{out} is not empty", hint=f"Give a new folder with --out{go_on}")


def is_unwritten(folder: RunFolder) -> bool:
    """Return whether a folder holds no more than what a killed process had begun to lay out.

    Hidden files do not count: locks, their traces, half-written files, the system's.
    """
    if not folder.path.is_dir() or folder.is_begun:
        return False
    return is_vacant(folder.path) or (
        (folder.path / LOCK).is_file()
        and {file.name for file in folder.path.iterdir() if not file.name.startswith(".")}
        <= {place.name for place in folder.laid}
    )


def is_utf8(name: str) -> bool:
    """Return whether a name is valid UTF-8; Python passes other bytes on as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_run(path: str | Path) -> RunFolder:
    """Return an existing run folder.

    Raises:
        CheckpointError: there is none at this path.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise CheckpointError(f"no run folder {folder.path}", hint=_runs_there())
    if not folder.recipe.is_file():
        raise CheckpointError(f"{folder.path} is not a run folder: it has no recipe.toml", hint=_runs_there())
    return folder


def open_finished(path: str | Path) -> RunFolder:
    """Return the folder of a run that has a model.

    Raises:
        CheckpointError: no run folder, or a run that has no model yet.
    """
    if RunFolder(Path(path)).ensemble.is_file():
        raise CheckpointError(
            f"{path} is an ensemble of several runs in one ONNX file: it has no model of its own",
            hint=f"finetune predict {shlex.quote(str(path))} PHOTOS takes it; its ensemble.json names its members.",
        )
    folder = open_run(path)
    if folder.holds_runs:
        raise CheckpointError(
            f"{folder.path} is a {folder.what} of several runs",
            hint=f"Train its winner: finetune run --recipe {shlex.quote(str(folder.path / 'winner.toml'))}"
            if folder.tuning.is_file()
            else f"Name one of its runs: {folder.path / 'runs'}/NAME.",
        )
    if not folder.is_finished or not folder.weights.is_file():
        raise CheckpointError(
            f"{folder.path} has no model yet: the run is not finished",
            hint=f"Resume it: {folder.resuming}",
        )
    return folder


def open_answering(path: str | Path) -> RunFolder:
    """Return the folder of a run that has a model, or of an ensemble.

    Raises:
        CheckpointError: neither.
    """
    folder = RunFolder(Path(path))
    return folder if folder.ensemble.is_file() else open_finished(path)


def open_unfinished(path: str | Path) -> RunFolder:
    """Return a run folder that can be resumed, even if its process was killed while laying it out.

    Raises:
        CheckpointError: there is none at this path, or its run was stopped before it wrote anything.
    """
    folder = RunFolder(Path(path))
    if is_unwritten(folder):
        raise stopped_before(folder)
    return folder if folder.asked.is_file() else open_run(path)


def stopped_before(folder: RunFolder) -> CheckpointError:
    """Return the error for a folder whose run or comparison was stopped before it wrote anything."""
    return CheckpointError(
        f"what began in {folder.path} was stopped before it wrote anything",
        hint=f"Nothing is lost: give the same command again, with --out {folder.path} or without.",
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside its place and rename it, so that it is never seen half-written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a run folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="A run folder needs it: start a new run."
        ) from error


def read_classes(folder: RunFolder) -> tuple[str, ...]:
    """Return the class names of a run, as its plan.json pins them.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    plan = read_json(folder.plan)
    classes = plan.get("classes") if isinstance(plan, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{folder.plan} names no classes: it is damaged", hint=f"Put it back, or {folder.anew}")
    return tuple(classes)


def slug(word: str) -> str:
    """Return a word in a form that fits the name of a run folder."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", word).strip("._") or "x"


def _runs_there() -> str:
    recipes = [path for path in Path("runs").glob("*/recipe.toml") if not RunFolder(path.parent).holds_runs]
    runs = sorted(recipes, key=lambda path: path.stat().st_mtime)
    return (
        f"The newest here is {runs[-1].parent}." if runs else "A run writes one: finetune run --data DIR --out FOLDER"
    )
