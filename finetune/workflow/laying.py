"""What stands in a run folder before the first step: laid out for a new run, read back for a resumed one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from finetune import recipe as recipes
from finetune.checkpoint import run_folder
from finetune.checkpoint.run_folder import RunFolder, write_json, write_text
from finetune.data import checks, split
from finetune.settings import Recipe
from finetune.types import Event, OnEvent, to_json
from finetune.workflow import changes, environment, saved
from finetune.workflow.prepare import (
    Prepared,
    architecture_of,
    list_data,
    load_backbone,
    pixels_of,
    plan_phases,
    with_head,
)

HEADER = "The resolved recipe of this run; repeat it with: finetune run --recipe recipe.toml"


def lay_folder(folder: RunFolder, prepared: Prepared) -> None:
    """Write everything that is known before the first step; recipe.toml last, which makes it a run folder.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    split.write(prepared.manifest, folder.split)
    saved.write_problems(folder.problems, prepared.manifest)
    write_json(folder.plan, saved.plan_content(prepared.backbone, prepared.phases, prepared.manifest))
    if prepared.evidence is not None and prepared.verdict is not None:
        content = {"evidence": to_json(prepared.evidence), "verdict": to_json(prepared.verdict)}
        write_json(folder.evidence, content)
    write_json(folder.environment, environment.describe())
    changes.note_beginning(folder, prepared.recipe, prepared.backbone)
    write_text(folder.recipe, recipes.dump(prepared.recipe, header=HEADER))
    folder.asked.unlink(missing_ok=True)


def reopen(
    folder: RunFolder, recipe: Recipe, *, allow: Collection[str], on_event: OnEvent
) -> tuple[Prepared, list[str]]:
    """Yield a run before its next step, and in words every change that was allowed since it began.

    Raises:
        CheckpointError: something changed that was not allowed, or a file of the run is damaged.
    """
    began = changes.read_beginning(folder)
    news = changes.settle(folder, recipe, began, allow=allow, on_event=on_event)
    classes = run_folder.read_classes(folder)
    kept = split.read(folder.split, root=saved.data_root(recipe), classes=classes)
    backbone = load_backbone(recipe, architecture_of(recipe), num_classes=len(classes))
    pixels = pixels_of(recipe, kept, backbone)
    now = checks.scan(list_data(recipe), pixels=pixels, on_event=on_event)
    manifest, more = changes.settle_data(folder, kept, now, allow=allow)
    phases = plan_phases(recipe, backbone)
    prepared = Prepared(recipe, manifest, with_head(recipe, backbone), phases, None, None, pixels)
    if not news:
        changes.check_weights(folder, began, prepared.backbone)
    news += more
    allowed = [*began["allowed"], *news]
    for text in news:
        on_event(Event("warning", {"text": f"{text} (allowed: the run is no longer what it would have been)"}))
    if news or recipe != recipes.load(folder.recipe) or recipe.model_dump() != began["recipe"]:
        changes.note_beginning(folder, recipe, prepared.backbone, allowed=allowed)
        split.write(manifest, folder.split)
        write_text(folder.recipe, recipes.dump(recipe, header=HEADER))
    return prepared, allowed


def with_whole_paths(recipe: Recipe) -> Recipe:
    """Yield a recipe whose data and weights are found from any folder."""
    named = {"data.path": recipe.data.path, "backbone.weights": recipe.backbone.weights}
    return recipes.update(
        recipe,
        {key: str(Path(path).expanduser().resolve()) for key, path in named.items() if path and path != "none"},
    )
