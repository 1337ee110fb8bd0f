"""The runs whose images a model has seen: its own, those that it joins, and those whose weights each began from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from finetune import recipe as recipes
from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.data.split import trained_contents
from finetune.errors import FinetuneError

HOLDS_MODELS = ("model", "exports", "checkpoints")  # what else lies in a run folder may be another run's


def run_of(path: Path) -> RunFolder | None:
    """Return the run folder that a model lies in, or that a path is; None if there is none."""
    path = path.expanduser().absolute()
    within = (place for place in path.parents if path.relative_to(place).parts[0] in HOLDS_MODELS)
    folders = (RunFolder(place) for place in (path, *within))
    return next((folder for folder in folders if folder.recipe.is_file() or folder.ensemble.is_file()), None)


def members_of(folder: RunFolder) -> list[RunFolder]:
    """Return the runs that an ensemble joins, as far as they are there; of a run, itself."""
    if not folder.ensemble.is_file():
        return [folder]
    members = read_json(folder.ensemble).get("members") or []
    above = (folder.path, *folder.path.parents)
    found = []
    for name in [str(member.get("run", "")) for member in members]:
        places = (RunFolder(place / name) for place in above if name)  # an absolute path stays itself
        found += [member for member in places if member.recipe.is_file()][:1]
    return found


def contents_seen(folder: RunFolder) -> set[str]:
    """Return the content hashes of all images that a run's model was trained on, here and in the runs before it.

    What cannot be read, or has been removed, is passed over.
    """
    seen: set[str] = set()
    for run, is_refit in _lineage(folder, set()):
        seen |= trained_contents(run.split, is_refit=is_refit)
    return seen


def _lineage(folder: RunFolder, met: set[Path]) -> Iterator[tuple[RunFolder, bool]]:
    """Yield each run with whether it was refitted; `met` are those that were yielded, so that no loop is endless."""
    with suppress(FinetuneError, OSError):
        for run in members_of(folder):
            if (place := run.path.resolve()) in met:
                continue
            met.add(place)
            recipe = recipes.load(run.recipe)
            yield run, recipe.train.refit
            before = None if recipe.backbone.weights == "none" else run_of(Path(recipe.backbone.weights))
            if before is not None:
                yield from _lineage(before, met)
