"""`run` and `resume` as a user means them, whichever way the recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.checkpoint import run_folder
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import CheckpointError
from finetune.settings import Recipe
from finetune.types import Manifest, OnEvent, ignore
from finetune.workflow.prepare import recipe_of
from finetune.workflow.race import go_on_racing, is_racing, race
from finetune.workflow.run import RunResult, resume_alone, run_alone


def run(
    data: str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> RunResult:
    """Train a classifier on a folder of images (or a table) and leave a run folder.

        finetune.run("imgs", strategy="head-only", backbone="resnet18", epochs=5)

    `settings` are the flags of `finetune run`, `overrides` any key of the recipe by its dotted name.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    if out is not None:
        run_folder.check_new(Path(out))
    return start(chosen, out=None if out is None else Path(out), on_event=on_event)


def resume(path: str | Path, *, on_event: OnEvent = ignore) -> RunResult:
    """Go on with an interrupted run from its last checkpoint, as if it had never stopped.

    Raises:
        CheckpointError: no run folder, damaged, or already finished.
    """
    folder = RunFolder(Path(path))
    if (folder.path / "race").is_dir() and not folder.race.is_file():
        raise CheckpointError(
            f"the race in {folder.path} was stopped before it began", hint="Nothing was trained yet: start it again."
        )
    return go_on(folder if is_racing(folder) else run_folder.open_run(path), on_event=on_event)


def start(
    recipe: Recipe, *, out: Path | None = None, manifest: Manifest | None = None, on_event: OnEvent = ignore
) -> RunResult:
    """Do what a recipe asks for in a new run folder; `manifest` is its data where it was read before.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    if recipe.strategy.name == "race":
        return race(recipe, out=out, manifest=manifest, on_event=on_event)
    return run_alone(recipe, out=out, manifest=manifest, on_event=on_event)


def go_on(folder: RunFolder, *, on_event: OnEvent = ignore) -> RunResult:
    """Go on with an interrupted run.

    Raises:
        CheckpointError: damaged, or already finished.
    """
    if is_racing(folder):
        return go_on_racing(folder, on_event=on_event)
    return resume_alone(folder, on_event=on_event)
