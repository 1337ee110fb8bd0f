"""Several run folders in one: what they share is read once, and each is begun or gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

from finetune import recipe as recipes
from finetune.checkpoint.run_folder import RunFolder
from finetune.prepare.inputs import Inputs, read_inputs, with_task
from finetune.runs.layout import Terms, reopen_inputs
from finetune.runs.signals import Stop
from finetune.runs.single import RunResult
from finetune.runs.start import go_on, start
from finetune.settings import Recipe
from finetune.types import Event, Manifest, OnEvent

SHOWN = ("progress", "step", "warning", "timing")  # what else a single run reports is for its own folder


def read_shared(recipe: Recipe, *, on_event: OnEvent) -> Inputs:
    """Read what runs share; its recipe is the one given, with the task and the range of values that the data has."""
    inputs = read_inputs(recipe, on_event=on_event)
    value_range = inputs.backbone.preprocessing.value_range or "auto"
    return replace(inputs, recipe=recipes.update(with_task(recipe, inputs.manifest), {"data.value_range": value_range}))


def reopen_shared(
    folder: RunFolder, classes: Sequence[str], terms: Terms, *, header: str, on_event: OnEvent
) -> tuple[Recipe, Manifest]:
    """Return the recipe that runs share, and their data as it is now.

    Raises:
        CheckpointError: something changed that was not allowed, or a file of the folder is damaged.
    """
    recipe = recipes.load(folder.recipe)
    again, _ = reopen_inputs(folder, recipe, tuple(classes), terms, header=header, on_event=on_event)
    return recipe, again.manifest


def done(
    folder: RunFolder, own: Callable[[], tuple[Recipe, Manifest]], terms: Terms, *, stop: Stop, on_event: OnEvent
) -> RunResult:
    """Do one of the runs, or what is left of it; `own` returns its recipe and its data.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """

    def watch(event: Event) -> None:
        if event.kind in SHOWN:
            on_event(event)

    if folder.is_laid:
        return go_on(folder, terms, stop=stop, on_event=watch)
    shutil.rmtree(folder.path, ignore_errors=True)  # of a run that was stopped before its first step
    recipe, manifest = own()
    return start(recipe, out=folder.path, manifest=manifest, stop=stop, on_event=watch)
