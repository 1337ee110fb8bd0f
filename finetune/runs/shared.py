"""Several run folders in one: what they share is written down once, and each is begun or gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from finetune import recipe as recipes
from finetune.backbone.load import Backbone
from finetune.checkpoint import changes
from finetune.checkpoint.run_folder import RunFolder
from finetune.data import split
from finetune.device import Compute
from finetune.prepare.inputs import Inputs, read_inputs, with_task
from finetune.runs.layout import Terms, reopen_inputs
from finetune.runs.signals import Stop
from finetune.runs.single import RunResult
from finetune.runs.start import go_on, start
from finetune.settings import Recipe
from finetune.types import Event, Manifest, OnEvent
from finetune.whole import write_text

SHOWN = ("progress", "step", "warning", "timing")  # what else a single run reports is for its own folder


def read_shared(recipe: Recipe, *, on_event: OnEvent) -> tuple[Recipe, Inputs]:
    """Read what runs share; return it, and the recipe with the task and the range of values that it has."""
    inputs = read_inputs(recipe, on_event=on_event)
    value_range = inputs.backbone.preprocessing.value_range or "auto"
    return recipes.update(with_task(recipe, inputs.manifest), {"data.value_range": value_range}), inputs


def lay_shared(
    folder: RunFolder, recipe: Recipe, manifest: Manifest, backbone: Backbone, compute: Compute, *, header: str
) -> None:
    """Write down what runs share; the recipe last, from which on there is something to resume.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    split.write(manifest, folder.split)
    changes.note_beginning(folder, recipe, backbone, compute)
    write_text(folder.recipe, recipes.dump(recipe, header=header))


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
