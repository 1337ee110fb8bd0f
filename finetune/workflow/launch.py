"""`run` and `resume` as a user means them, whichever way the recipe asks for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint import run_folder
from finetune.checkpoint.claim import LINGER, claimed, clear_leftovers, new_folder
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import CheckpointError
from finetune.settings import Recipe
from finetune.types import Event, Manifest, OnEvent, ignore
from finetune.whole import write_text
from finetune.workflow import race
from finetune.workflow import run as alone
from finetune.workflow.changes import check_kinds
from finetune.workflow.guard import IN_A_RUN, guarded
from finetune.workflow.laying import Terms, with_whole_paths
from finetune.workflow.prepare import recipe_of, with_backbone
from finetune.workflow.race import Field
from finetune.workflow.run import Ready, RunResult
from finetune.workflow.signals import Stop, stop_on_signals


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
    with stop_on_signals() as stop:
        return start(chosen, out=None if out is None else Path(out), stop=stop, on_event=on_event)


def resume(
    path: str | Path,
    *,
    allow: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> RunResult:
    """Go on with an interrupted run from its last checkpoint, as if it had never stopped.

    `allow` names the kinds of change ("data", "version", "recipe") that may have come between;
    `settings` and `overrides` change the recipe, as in `run`.

    Raises:
        CheckpointError: no run folder, damaged, already finished, or something changed that may not.
        ResourceError: another process is at it.
    """
    terms = Terms(check_kinds(allow), settings, overrides or {})
    folder = run_folder.open_unfinished(path)
    if folder.comparison.is_file():
        raise CheckpointError(f"{folder.path} is a comparison, no run", hint=f"Go on with: {folder.resuming}")
    with stop_on_signals() as stop:
        return go_on(folder, terms, stop=stop, on_event=on_event)


@guarded(IN_A_RUN)
def start(
    recipe: Recipe, *, out: Path | None = None, manifest: Manifest | None = None, stop: Stop, on_event: OnEvent = ignore
) -> RunResult:
    """Do what a recipe asks for in a new run folder; `manifest` is its data where it was read before.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    recipe = with_backbone(recipe, on_event=on_event)
    if out is not None:
        with new_folder(out) as folder:
            write_text(folder.asked, recipes.dump(with_whole_paths(recipe)))
            return _ready(recipe, manifest, on_event).begin(folder, stop=stop, on_event=on_event)
    made = _ready(recipe, manifest, on_event)
    with new_folder(None, words=made.words) as folder:
        return made.begin(folder, stop=stop, on_event=on_event)


@guarded(IN_A_RUN)
def go_on(folder: RunFolder, terms: Terms, *, stop: Stop, on_event: OnEvent = ignore) -> RunResult:
    """Go on with an interrupted run.

    Raises:
        CheckpointError: damaged, already finished, or something changed that may not.
        ResourceError: another process is at it.
    """
    _check_unfinished(folder)
    with claimed(folder, seconds=LINGER, on_event=on_event):
        _check_unfinished(folder)
        clear_leftovers(folder)
        if folder.is_racing:
            return race.go_on_racing(folder, terms, stop=stop, on_event=on_event)
        if folder.recipe.is_file():
            return alone.resume_alone(folder, terms, stop=stop, on_event=on_event)
        on_event(Event("message", {"text": f"{folder.path} was stopped before its first step: it begins anew"}))
        recipe = with_backbone(terms.recipe(folder.asked), on_event=on_event)
        return _ready(recipe, None, on_event).begin(folder, stop=stop, on_event=on_event)


def _ready(recipe: Recipe, manifest: Manifest | None, on_event: OnEvent) -> Ready | Field:
    if recipe.strategy.name == "race":
        return race.ready(recipe, manifest=manifest, on_event=on_event)
    return alone.ready(recipe, manifest=manifest, on_event=on_event)


def _check_unfinished(folder: RunFolder) -> None:
    if folder.is_finished:
        raise CheckpointError(
            f"{folder.path} is finished: there is nothing to resume",
            hint="See its report.html. To train on from its model:"
            f" finetune run --weights {shlex.quote(str(folder.path))} --data DIR.",
        )
