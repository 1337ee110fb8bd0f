"""The run folders in a folder: what each is, what it reached, and how large it is. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint.claim import RUNS, claimed
from finetune.checkpoint.run_folder import LOCK, RunFolder
from finetune.data.places import data_name
from finetune.errors import CheckpointError, FinetuneError, ResourceError, did_you_mean
from finetune.types import OnEvent, ignore, to_json
from finetune.whole import old_of

UNREADABLE = "unreadable"  # the kind of a folder that may not be looked into
PAGES = ("report.html", "compare.html")
PARTS = {  # of a run folder, in the order in which they are told
    "report.html": "reasons and results",
    "compare.html": "all of them side by side",
    "recipe.toml": "every setting: finetune run --recipe FILE repeats it",
    "winner.toml": "the recipe that won: finetune run --recipe FILE trains it",
    "metrics.json": "its metrics",
    "predictions.csv": "its answer for every image measured",
    "model": "its weights, as a timm folder",
    "exports": "for other programs",
    "runs": "its runs",
}


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run folder: its kind (run, comparison, set, search, race, ensemble) and what is known of it without loading it.

    A folder that may not be looked into is of the kind "unreadable".
    `score` is the first metric of the split that was measured last, `num_bytes` the size of all of its files.
    """

    path: Path
    kind: str
    data: str = ""
    network: str = ""
    strategy: str = ""
    measure: str = ""  # "val top1"
    score: float | None = None
    is_finished: bool = True
    changed: datetime = field(default_factory=datetime.now)
    num_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        facts: dict[str, Any] = to_json(self)
        return facts | {"path": str(self.path), "changed": self.changed.isoformat(timespec="seconds")}


def list_runs(place: str | Path = RUNS) -> tuple[FoundRun, ...]:
    """Return the run folders in a folder, the newest last, without those inside others.

    Raises:
        CheckpointError: there is no such folder.
    """
    root = Path(place)
    if not root.is_dir():
        raise CheckpointError(f"no such folder: {root}", hint="Name one that holds run folders.")
    if _kind(RunFolder(root)):
        return (show_run(root),)
    found = [run for path in root.iterdir() if path.is_dir() and (run := _found(path))]
    return tuple(sorted(found, key=lambda run: (run.changed, run.path.name)))


def _found(path: Path) -> FoundRun | None:
    """Return what is known of a folder if it is a run folder; one of another user's that cannot be read may be one."""
    try:
        return show_run(path) if _kind(RunFolder(path)) else None
    except PermissionError:
        return FoundRun(path, UNREADABLE, changed=datetime.fromtimestamp(path.stat().st_mtime))


def is_run(path: str | Path) -> bool:
    """Return whether a path is a run folder, of any kind."""
    return bool(_kind(RunFolder(Path(path))))


def show_run(path: str | Path) -> FoundRun:
    """Return what is known of a run folder; damaged files are passed over.

    Raises:
        CheckpointError: it is not a run folder.
    """
    folder = RunFolder(Path(path))
    kind = _kind(folder)
    if not kind:
        raise _no_run(folder.path)
    recipe = next((place for place in (folder.recipe, folder.asked) if place.is_file()), None)
    try:
        known = recipes.load(recipe) if recipe else None
    except FinetuneError:
        known = None
    measure, score = _score(_read(folder.ensemble if kind == "ensemble" else folder.metrics))
    files = [file for file in folder.path.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max((file.stat().st_mtime for file in files), default=folder.path.stat().st_mtime)
    return FoundRun(
        folder.path,
        kind,
        data=data_name(known.data.path) if known else "",
        network=known.backbone.name if known else "",
        strategy=known.strategy.name if known else "",
        measure=measure,
        score=score,
        is_finished=kind == "ensemble" or folder.is_finished or _is_done(folder, kind),
        changed=datetime.fromtimestamp(newest),
        num_bytes=sum(file.stat().st_size for file in files),
    )


def removable(paths: Sequence[str | Path]) -> tuple[FoundRun, ...]:
    """Return what is known of run folders that can be removed, because each holds nothing but its own files.

    Raises:
        CheckpointError: one is no run folder, a link, named twice, or holds other runs or the working directory.
    """
    runs, here = tuple(show_run(path) for path in paths), Path.cwd().resolve()
    whole = [run.path.resolve() for run in runs]
    for place, run in enumerate(runs):
        own = whole[place]
        if run.path.is_symlink():
            raise CheckpointError(f"{run.path} is a link to a run folder", hint=f"Name the folder itself: {own}")
        over = next((runs[other].path for other, it in enumerate(whole) if other != place and it in own.parents), None)
        if over is not None:
            raise CheckpointError(f"{run.path} lies in {over}, which is also to be removed", hint=f"Name only {over}.")
        if own in whole[:place]:
            raise CheckpointError(f"{run.path} is named twice", hint="Name each run folder once.")
        if own == here or own in here.parents:
            raise CheckpointError(f"{run.path} holds the working directory", hint="Leave it first: cd.")
        other = next((path for path in sorted(own.iterdir()) if path.is_dir() and _kind(RunFolder(path))), None)
        if other is not None:
            raise CheckpointError(
                f"{run.path} holds another run folder, {other.name}, which is not one of its own",
                hint=f"Move it to another place, or remove it first: {other}",
            )
    return runs


def remove_runs(paths: Sequence[str | Path], *, on_event: OnEvent = ignore) -> int:
    """Remove run folders with everything in them, and return how many bytes that frees.

    All are checked before one is touched.

    Raises:
        CheckpointError: one cannot be removed (`removable`). ResourceError: a process is writing into one, or it
            cannot be written.
    """
    runs = removable(paths)
    for run in runs:
        for folder in {run.path, *(lock.parent for lock in run.path.rglob(LOCK))}:  # of a comparison its runs, too
            with claimed(RunFolder(folder), seconds=0, on_event=on_event):
                pass
    for run in runs:
        own = run.path.resolve()
        aside = old_of(own)
        try:
            if aside.exists():  # left from a removal that was killed
                shutil.rmtree(aside)
            own.rename(aside)  # from now on it is not a run any more, whatever becomes of its files
            shutil.rmtree(aside)
        except OSError as error:
            raise ResourceError(f"{run.path} cannot be removed: {error.strerror}") from error
    return sum(run.num_bytes for run in runs)


def ensembles_of(runs: Sequence[FoundRun]) -> list[tuple[Path, str]]:
    """Return the ensembles beside run folders to be removed, each with the name of a member it would lose."""
    gone = {run.path.resolve() for run in runs}
    beside = {place.resolve(): place for run in runs for place in run.path.parent.iterdir()}
    return [
        (place, member.name)
        for own, place in sorted(beside.items())
        for member in (() if own in gone else _members(RunFolder(place)))
        if not gone.isdisjoint((member, *member.parents))
    ]


def _members(folder: RunFolder) -> list[Path]:
    """Return the members of an ensemble; none for another folder."""
    facts = _read(folder.ensemble) if folder.ensemble.is_file() else None
    members = facts.get("members") if isinstance(facts, dict) else None
    taking_part = [member for member in members or [] if isinstance(member, dict) and member.get("count", 1)]
    return [(folder.path / ".." / str(member.get("run", ""))).resolve() for member in taking_part]


def page_of(path: str | Path) -> Path:
    """Return the page of a run, a comparison or a search.

    Raises:
        CheckpointError: it has none.
    """
    run = show_run(path)
    page = next((run.path / name for name in PAGES if (run.path / name).is_file()), None)
    if page is None:
        way = f"Resume it: {RunFolder(run.path).resuming}" if not run.is_finished else ""
        raise CheckpointError(f"{run.path} is a {run.kind}, and has no page", hint=way)
    return page


def _kind(folder: RunFolder) -> str:
    """Return the kind of a run folder; "" if it is not one."""
    if folder.ensemble.is_file():
        return "ensemble"
    if folder.is_racing:
        return "race"
    return folder.what if folder.is_begun else ""


def _is_done(folder: RunFolder, kind: str) -> bool:
    """Return whether the joint result of several runs is there."""
    if kind == "search":
        return (folder.path / "winner.toml").is_file()
    if kind in ("comparison", "set"):
        return any((folder.path / name).is_file() for name in PAGES)
    return False


def _score(measured: Any) -> tuple[str, float | None]:
    """Return the first metric of the last measured split, from metrics.json or ensemble.json."""
    splits = measured.get("metrics", measured) if isinstance(measured, dict) else {}
    for split, values in reversed(list(splits.items()) if isinstance(splits, dict) else []):
        if isinstance(values, dict) and values:
            name, value = next(iter(values.items()))
            if isinstance(value, dict) and isinstance(value.get("value"), float):
                return f"{split} {name}", value["value"]
    return "", None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _no_run(path: Path) -> CheckpointError:
    if not path.is_dir():
        there = [place.name for place in path.parent.iterdir()] if path.parent.is_dir() else []
        return CheckpointError(
            f"no run folder {path}.{did_you_mean(path.name, there)}", hint="finetune runs lists them."
        )
    return CheckpointError(f"{path} is no run folder", hint="finetune runs lists them.")
