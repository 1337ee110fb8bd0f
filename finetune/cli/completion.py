"""What the shell completes: backbones, strategies, recipes, runs, keys of `--set`. Nothing here imports torch.

If nothing fits, the shell completes file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from finetune import recipe as recipes
from finetune.checkpoint.claim import RUNS
from finetune.checkpoint.run_folder import RunFolder
from finetune.values import STRATEGY_NAMES

Completion = Callable[[str], list[str]]


def _beginning(names: Iterable[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def in_list(complete: Completion) -> Completion:
    """Return the completion of the last of several names that are joined by commas."""

    def completed(typed: str) -> list[str]:
        before, comma, last = typed.rpartition(",")
        return [f"{before}{comma}{name}" for name in complete(last)]

    return completed


def complete_backbone(typed: str) -> list[str]:
    """Return the backbones that begin with what is typed; after a dot, their weights."""
    from finetune.backbone.catalogue import entries, networks

    return _beginning((entry.full_name for entry in entries()) if "." in typed else networks(), typed)


def complete_family(typed: str) -> list[str]:
    """Return the families of backbones that begin with what is typed."""
    from finetune.backbone.catalogue import families

    return _beginning(families(), typed)


def complete_licence(typed: str) -> list[str]:
    """Return the licences of weights that begin with what is typed."""
    from finetune.backbone.catalogue import licences

    return _beginning(licences(), typed)


def complete_strategy(typed: str) -> list[str]:
    """Return the strategies that begin with what is typed."""
    return _beginning(STRATEGY_NAMES, typed)


def complete_recipe(typed: str) -> list[str]:
    """Return the shipped recipes that begin with what is typed."""
    from finetune.workflow.recipes import list_recipes

    return _beginning((recipe.name for recipe in list_recipes()), typed)


def complete_run(typed: str) -> list[str]:
    """Return the run folders and ensembles, here and in runs/, that are finished and begin with what is typed."""
    return _folders(typed, lambda folder: folder.is_finished or folder.ensemble.is_file())


def complete_unfinished(typed: str) -> list[str]:
    """Return the folders that `--resume` takes."""
    return _folders(typed, lambda folder: folder.is_begun and not folder.is_finished)


def complete_any_run(typed: str) -> list[str]:
    """Return what `finetune runs` lists and begins with what is typed."""
    return _folders(typed, lambda folder: folder.is_begun or folder.is_finished or folder.ensemble.is_file())


def _folders(typed: str, is_meant: Callable[[RunFolder], bool]) -> list[str]:
    """Return the folders that begin with what is typed, in order; for a bare name those here and in runs/."""
    near = Path(typed if typed.endswith("/") else Path(typed).parent)
    places = [near] if "/" in typed else [Path(), RUNS]
    found = (path for place in places if place.is_dir() for path in place.iterdir() if path.is_dir())
    return sorted(str(path) for path in found if str(path).startswith(typed) and is_meant(RunFolder(path)))


def complete_key(typed: str) -> list[str]:
    """Return the keys of the recipe that begin with what is typed; after KEY= the named values."""
    key, equals, begun = typed.partition("=")
    if not equals:
        return _beginning(recipes.fields(), typed)
    info = recipes.fields().get(key)
    return [] if info is None else [f"{key}={name}" for name in _beginning(_names_of(info.annotation), begun)]


def _names_of(annotation: Any) -> list[str]:
    """Return the named values of a key."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(annotation)]
    return [name for part in get_args(annotation) for name in _names_of(part)]


COMPLETIONS: dict[str, Completion] = {  # by flag
    "backbone": complete_backbone,
    "among": in_list(complete_backbone),
    "strategy": complete_strategy,
}
