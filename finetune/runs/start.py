"""A run as the recipe asks for it, alone or a race: started in a new folder, or resumed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from finetune import ranks
from finetune import recipe as recipes
from finetune.checkpoint.claim import LINGER, RUNS, claimed, clear_leftovers, new_folder
from finetune.checkpoint.run_folder import RunFolder
from finetune.data.places import check_outside
from finetune.errors import CheckpointError, RecipeError
from finetune.prepare.inputs import with_backbone
from finetune.runs import doubt, race
from finetune.runs.backbone_race import backbones_of, prepare_backbones
from finetune.runs.layout import Terms, with_whole_paths
from finetune.runs.signals import Stop
from finetune.runs.single import RunResult, resume_alone
from finetune.settings import Recipe
from finetune.tracking import tracker_names
from finetune.train.guard import IN_A_RUN, guarded
from finetune.types import Event, Manifest, OnEvent, ignore
from finetune.whole import write_text

RACE = "strategy race"


class Startable(Protocol):
    """A run before its first step, alone or as a race: everything is settled except its folder."""

    @property
    def words(self) -> tuple[str, ...]: ...

    def begin(self, folder: RunFolder, *, stop: Stop, on_event: OnEvent) -> RunResult: ...


@guarded(IN_A_RUN)
def start(
    recipe: Recipe, *, out: Path | None = None, manifest: Manifest | None = None, stop: Stop, on_event: OnEvent = ignore
) -> RunResult:
    """Do what a recipe asks for in a new run folder; `manifest` is its data, if that was read before.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    tracker_names(recipe.train.track)  # missing packages are reported now, not after the first pass
    recipe = _named(recipe, on_event)
    if out is not None:
        with _shared(new_folder, out, data=recipe.data.path) as folder:
            asked = recipes.dump(with_whole_paths(recipe))
            ranks.agreed(lambda: write_text(folder.asked, asked))
            return _ready(recipe, manifest, on_event).begin(folder, stop=stop, on_event=on_event)
    ranks.agreed(lambda: check_outside(RUNS, recipe.data.path))  # before the first pass
    ready = _ready(recipe, manifest, on_event)
    with _shared(new_folder, None, words=ready.words, data=recipe.data.path) as folder:
        return ready.begin(folder, stop=stop, on_event=on_event)


@guarded(IN_A_RUN)
def go_on(folder: RunFolder, terms: Terms, *, stop: Stop, on_event: OnEvent = ignore) -> RunResult:
    """Resume an interrupted run.

    Raises:
        CheckpointError: damaged, already finished, or something changed that may not.
        ResourceError: another process is at it.
    """
    with _shared(_reclaimed, folder, on_event):
        if ranks.agreed(lambda: folder.is_racing):
            _refuse_shared(RACE)
            return race.go_on_racing(folder, terms, stop=stop, on_event=on_event)
        if ranks.agreed(folder.recipe.is_file):
            return resume_alone(folder, terms, stop=stop, on_event=on_event)
        on_event(Event.message(f"{folder.path} was stopped before its first step: it starts afresh"))
        recipe = _named(ranks.agreed(lambda: terms.recipe(folder.asked)), on_event)
        return _ready(recipe, None, on_event).begin(folder, stop=stop, on_event=on_event)


@contextmanager
def _reclaimed(folder: RunFolder, on_event: OnEvent) -> Iterator[RunFolder]:
    """Hold the folder of an unfinished run inside the block, cleared of half-written files.

    Raises:
        CheckpointError: it is finished. ResourceError: another process is at it.
    """
    _check_unfinished(folder)
    with claimed(folder, seconds=LINGER, on_event=on_event):
        _check_unfinished(folder)
        clear_leftovers(folder)
        yield folder


@contextmanager
def _shared(hold: Callable[..., AbstractContextManager[RunFolder]], *args: Any, **more: Any) -> Iterator[RunFolder]:
    """Have the first process hold a folder inside the block, for all that share the run."""
    with ExitStack() as held:
        yield ranks.agreed(lambda: held.enter_context(hold(*args, **more)))


def _named(recipe: Recipe, on_event: OnEvent) -> Recipe:
    """Return the recipe with a named backbone, unless the data is to choose it."""
    return recipe if _is_open(recipe) else with_backbone(recipe, on_event=on_event)


def _is_open(recipe: Recipe) -> bool:
    """Return whether the data is to choose the backbone of a recipe."""
    return ranks.agreed(lambda: bool(backbones_of(recipe)))


def _ready(recipe: Recipe, manifest: Manifest | None, on_event: OnEvent) -> Startable:
    if _is_open(recipe):
        _refuse_shared("the choice of a backbone from the data")
        return prepare_backbones(recipe, manifest=manifest, on_event=on_event)
    if recipe.strategy.name == "race":
        _refuse_shared(RACE)
        return race.prepare_race(recipe, manifest=manifest, on_event=on_event)
    return doubt.prepare_run(recipe, manifest=manifest, on_event=on_event)


def _refuse_shared(what: str) -> None:
    if ranks.is_together():
        raise RecipeError(
            f"{what} cannot be shared by several processes",
            hint="Start it without the launcher, or name another strategy and a backbone (--backbone NAME).",
        )


def _check_unfinished(folder: RunFolder) -> None:
    if folder.is_finished:
        raise CheckpointError(
            f"{folder.path} is finished: there is nothing to resume",
            hint="See its report.html. To continue from its model:"
            f" finetune run --weights {shlex.quote(str(folder.path))} --data DIR.",
        )
