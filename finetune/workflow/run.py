"""`run` and `resume` as a user means them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

from finetune import ranks
from finetune.arguments import Settings, SettingsWithData, typed
from finetune.checkpoint import run_folder
from finetune.checkpoint.changes import check_kinds
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import CheckpointError
from finetune.prepare.asked import recipe_of
from finetune.runs.layout import Terms
from finetune.runs.signals import stop_on_signals
from finetune.runs.single import RunResult
from finetune.runs.start import go_on, start
from finetune.settings import Recipe
from finetune.types import Event, OnEvent, ignore


@typed
def run(
    data: str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> RunResult:
    """Train a classifier on a folder of images (or a table) and leave a run folder.

        finetune.run("imgs", strategy="head-only", backbone="resnet18", epochs=5)

    `settings` are the flags of `finetune run`: task, group_by, val, test, backbone, among, weights, pretrained,
    image_size, strategy, assume, top_k, probe_at, reinit, epochs, time, batch_size, micro_batch, lr, balance,
    calibrate, refit, track, seed, device, workers, threads. `overrides` are any keys of the recipe by their dotted
    names, `recipe` is one to start from: a file, or the name of one that ships with the tool. Processes that a
    launcher has started share the run (docs/scale.md).

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    with ranks.together(), stop_on_signals() as stop:
        return start(chosen, out=None if out is None else Path(out), stop=stop, on_event=_heard(on_event))


@typed
def resume(
    path: str | Path,
    *,
    allow: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[SettingsWithData],
) -> RunResult:
    """Resume an interrupted run from its last checkpoint, as if it had never stopped.

    `allow` names the kinds of change ("data", "version", "recipe") that may have come between;
    `settings` and `overrides` change the recipe, as in `run`.

    Raises:
        CheckpointError: no run folder, damaged, already finished, or something changed that may not.
        ResourceError: another process is at it.
    """
    terms = Terms(check_kinds(allow), settings, overrides or {})
    with ranks.together(), stop_on_signals() as stop:
        folder = ranks.agreed(lambda: _unfinished(path))
        return go_on(folder, terms, stop=stop, on_event=_heard(on_event))


def _heard(on_event: OnEvent) -> OnEvent:
    """Return a run's listener: with several processes only the first has one, which says how many there are."""
    if ranks.is_together() and ranks.is_first():
        on_event(Event.message(f"{ranks.count()} processes share this run"))
    return on_event if ranks.is_first() else ignore


def _unfinished(path: str | Path) -> RunFolder:
    """Return the folder of a run to resume.

    Raises:
        CheckpointError: it is not one.
    """
    folder = run_folder.open_unfinished(path)
    if folder.holds_runs:
        way = (
            "In Python: finetune.resume_several(...)" if folder.several.is_file() else f"Resume with: {folder.resuming}"
        )
        raise CheckpointError(f"{folder.path} is a {folder.what}, not a run", hint=way)
    return folder
