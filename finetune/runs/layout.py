"""A run folder before the first step: laid out for a new run, read back for a resumed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune import environment, ranks
from finetune import recipe as recipes
from finetune.checkpoint import changes, run_folder
from finetune.checkpoint.contents import Beginning, PlanFile, read_as
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.checkpoint.saved import data_gone, data_root, pinned_task, write_problems
from finetune.data import checks, split
from finetune.data.places import settled_path
from finetune.device import Compute
from finetune.errors import BackboneError
from finetune.images.stores import address_of
from finetune.prepare.asked import recipe_of
from finetune.prepare.candidates import whole_name
from finetune.prepare.inputs import (
    Inputs,
    architecture_of,
    as_filled,
    list_together,
    load_backbone,
    pixels_of,
    range_named,
    with_task,
)
from finetune.prepare.prepared import Prepared, planned_run
from finetune.prepare.resolve import with_head
from finetune.report.content import told
from finetune.runs.plan_file import evidence_content, plan_content
from finetune.settings import Recipe
from finetune.tasks import Scale
from finetune.types import Event, Manifest, OnEvent
from finetune.whole import write_text

HEADER = "The resolved recipe of this run; repeat it with: finetune run --recipe recipe.toml"


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a stopped run goes on: the allowed kinds of change, and changes to its recipe."""

    allow: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, file: Path) -> Recipe:
        """Return a recipe of the run as it will be from now on."""
        recipe = recipe_of(file, settings=self.settings, overrides=self.overrides)
        return with_whole_paths(recipe) if self.settings or self.overrides else recipe


def lay_folder(folder: RunFolder, prepared: Prepared) -> None:
    """Write everything that is known before the first step; recipe.toml last, which makes it a run folder.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    write_problems(folder.problems, prepared.manifest)
    write_json(folder.plan, plan_content(prepared))
    if prepared.evidence is not None and prepared.verdict is not None:
        write_json(folder.evidence, evidence_content(prepared.recipe, prepared.evidence, prepared.verdict))
    with prepared.compute.in_force():
        write_json(folder.environment, environment.describe())
    lay_inputs(folder, prepared)
    folder.asked.unlink(missing_ok=True)


def lay_inputs(folder: RunFolder, inputs: Inputs, *, header: str = HEADER) -> None:
    """Write down what a run, or several, begin with; recipe.toml last, from which on there is something to resume.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    split.write(inputs.manifest, folder.split)
    changes.note_beginning(folder, inputs.recipe, inputs.backbone, inputs.compute)
    write_text(folder.recipe, recipes.dump(inputs.recipe, header=header))


def reopen(
    folder: RunFolder,
    terms: Terms,
    *,
    now: Manifest | None = None,
    named: RunFolder | None = None,
    on_event: OnEvent,
) -> tuple[Prepared, list[str]]:
    """Return a run before its next step, and every change allowed since it began, in words.

    `now` is the data as it is, where it was read already; `named` is the folder that a user goes on with,
    where it is another.

    Raises:
        CheckpointError: something changed that was not allowed, or a file of the run is damaged.
    """

    def read() -> tuple[Recipe, tuple[str, ...], Scale | None]:
        recipe, classes = terms.recipe(folder.recipe), run_folder.read_classes(folder)
        told(folder)  # what the report needs: damage is reported now, not after training
        return recipe, classes, read_as(PlanFile, folder.plan).scale

    recipe, classes, scale = ranks.agreed(read)
    again, allowed = reopen_inputs(folder, recipe, classes, terms, now=now, named=named, on_event=on_event)
    return replace(planned_run(again, again.recipe), scale=scale), allowed


def reopen_inputs(
    folder: RunFolder,
    recipe: Recipe,
    classes: Sequence[str],
    terms: Terms,
    *,
    now: Manifest | None = None,
    named: RunFolder | None = None,
    header: str = HEADER,
    on_event: OnEvent,
) -> tuple[Inputs, list[str]]:
    """Return the inputs as they are now, compared with what a run or a comparison began with.

    Raises:
        CheckpointError: something changed that was not allowed, or a file of the folder is damaged.
        DataError, BackboneError: the data or the weights are no longer where they were.
    """
    named, num_processes = named or folder, ranks.count()

    def read() -> tuple[Beginning, list[str], Manifest]:
        root = data_root(recipe)
        if address_of(root) is None and not Path(root).exists():
            raise data_gone(named, root)
        weights = recipe.backbone.weights
        if weights != "none" and not Path(weights).expanduser().exists():
            raise BackboneError(
                f"the weights that {named.path} began with are not in {weights} any more",
                hint=f"Put them there, or go on with: {named.resuming} --weights NEW",
            )
        began = read_as(Beginning, folder.began, has_format=True)
        news = changes.settle_changes(named, recipe, began, allow=terms.allow)
        news += changes.settle_processes(named, num_processes, began, allow=terms.allow)
        return began, news, split.read(folder.split, root=root, classes=classes, task=pinned_task(recipe))

    began, news, kept = ranks.agreed(read)
    recipe = with_task(recipe, kept)
    compute = Compute.of(recipe.train, threads=began.threads)
    backbone = load_backbone(recipe, architecture_of(recipe), compute, num_classes=len(classes), classes=classes)
    pixels = pixels_of(recipe, kept, backbone)

    if now is None:
        listed = list_together(recipe, on_event=on_event)
        now = checks.scan(listed, pixels=pixels, value_range=range_named(recipe), on_event=on_event)
    there = now

    def settle() -> tuple[Manifest, list[str]]:
        manifest, more = changes.settle_data(named, kept, there, allow=terms.allow)
        if not news:
            changes.check_weights(named, began, with_head(recipe, backbone))
        told_of = [*news, *more]
        allowed = list(dict.fromkeys([*began.allowed, *told_of]))
        for text in told_of:
            on_event(Event.warning(f"{text} (allowed: the run is no longer what it would have been)"))
        if told_of or recipe != recipes.load(folder.recipe) or recipe.model_dump() != began.recipe:
            changes.note_beginning(folder, recipe, with_head(recipe, backbone), compute, allowed=allowed)
            split.write(manifest, folder.split)
            write_text(folder.recipe, recipes.dump(recipe, header=header))
        return manifest, allowed

    manifest, allowed = ranks.agreed(settle)
    return Inputs(recipe, manifest, backbone, as_filled(pixels), compute), allowed


def with_whole_paths(recipe: Recipe) -> Recipe:
    """Return a recipe whose data and weights are found from any folder."""
    weights = recipe.backbone.weights
    whole = {"data.path": settled_path(recipe.data.path)} if recipe.data.path else {}
    if weights and weights != "none":
        whole["backbone.weights"] = str(Path(weights).expanduser().resolve())
    among = ",".join(whole_name(name.strip()) for name in recipe.backbone.among.split(","))
    return recipes.update(recipe, {**whole, "backbone.among": among})
