"""How many images go through the network at once: settled before the first step, and written into the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import timm
import torch
from torch import Tensor

from finetune import ranks
from finetune import recipe as recipes
from finetune.backbone.blank import blank_images
from finetune.backbone.freeze import freezing
from finetune.backbone.load import Backbone
from finetune.device import free_memory
from finetune.errors import BackboneError, RecipeError
from finetune.optim.optimisers import OPTIMISERS
from finetune.prepare.inputs import skeleton_of
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import with_head
from finetune.settings import Recipe
from finetune.timings import remember, remembered
from finetune.train.ledger import step_held, step_memory
from finetune.train.memory import Memory, fitting_batch, tried_batch
from finetune.train.outputs import loss_of
from finetune.types import Event, OnEvent, Phase
from finetune.wording import counted

MARGIN = 0.1  # of what is free on a GPU
LEAST = 2  # images that are counted: batch norm wants more than one
COUNTED_AS = 2  # goes up when memory is counted differently


def with_micro_batch(prepared: Prepared, *, on_event: OnEvent) -> Prepared:
    """Return a run with `micro_batch` settled: by trial on a GPU, by counting bytes on a CPU.

    Of several processes each takes its part of a batch.

    Raises:
        RecipeError: a batch has fewer images than there are processes.
        ResourceError: not even one image fits.
    """
    recipe = prepared.recipe
    _check_parts(prepared)
    batch = -(-int(recipe.train.batch_size) // ranks.count())
    asked = recipe.train.micro_batch
    size = ranks.agreed(lambda: _fitting(prepared, batch)) if asked == "auto" else min(batch, asked)
    if size < batch:
        on_event(Event.warning(_accumulates(batch, size, prepared.phases)))
    return replace(prepared, recipe=recipes.update(recipe, {"train.micro_batch": size}))


def _check_parts(prepared: Prepared) -> None:
    """Check that every process has an image of every batch.

    Raises:
        RecipeError: a batch has too few.
    """
    num_train = len(prepared.manifest.split("train"))
    least = num_train // -(-num_train // int(prepared.recipe.train.batch_size))
    if least < ranks.count() and any(phase.solver == "gradient" for phase in prepared.phases):
        raise RecipeError(
            f"a batch of {counted(least, 'image')} cannot be split over {ranks.count()} processes",
            hint=f"train.batch_size counts the images of all processes: --batch-size {8 * ranks.count()} or more, or"
            " fewer processes.",
        )


def phase_memory(skeleton: Backbone, phase: Phase, recipe: Recipe, *, batch: int, precision: str) -> Memory:
    """Return how much memory a step of a phase takes, with up to `batch` images."""
    trained = 4 * sum(group.num_trained(phase.plan[group.name]) for group in skeleton.groups)
    batch = max(batch, LEAST)
    return step_memory(step_held(skeleton, phase, recipe, batch=batch, precision=precision), batch, trained=trained)


def skeleton_or_none(recipe: Recipe, *, num_classes: int) -> Backbone | None:
    """Return a recipe's network without memory for its weights; None if it cannot be built like that."""
    try:
        return with_head(recipe, skeleton_of(recipe, num_classes=num_classes))
    except (BackboneError, NotImplementedError, RuntimeError):
        return None


def _fitting(prepared: Prepared, batch: int) -> int:
    device = prepared.compute.device
    by_gradient = [phase for phase in prepared.phases if phase.solver == "gradient"]
    if device.type == "cuda":
        return min((_tried(prepared, phase, batch) for phase in by_gradient), default=batch)
    skeleton = cache(partial(skeleton_or_none, prepared.recipe, num_classes=len(prepared.manifest.classes)))
    needs = [need_of(prepared, phase, batch, skeleton) for phase in by_gradient]
    free = free_memory(device)
    return min((fitting_batch(batch, need, free) for need in needs if need), default=batch)


def need_of(prepared: Prepared, phase: Phase, batch: int, skeleton: Callable[[], Backbone | None]) -> Memory | None:
    """Return what a step of a phase takes, counted once on this machine and kept; None if it cannot be counted."""
    recipe, backbone = prepared.recipe, prepared.backbone
    about = {
        "what": "memory",
        "network": [*backbone.network, recipe.strategy.probe_at],
        "num_classes": len(prepared.manifest.classes),
        "image_size": backbone.preprocessing.image_size,
        "optimiser": recipe.optim.name,
        "regularise": recipe.regularise.model_dump(mode="json"),
        "batch": batch,
        "precision": prepared.compute.precision,
        "fold_norms": recipe.train.fold_norms,
        "plan": repr(phase.plan),
        "versions": [torch.__version__, timm.__version__, COUNTED_AS],
    }
    numbers = remembered(about)
    if numbers is None:
        need = _counted(skeleton(), phase, recipe, batch=batch, precision=prepared.compute.precision)
        numbers = {"fixed": need.fixed, "per_image": need.per_image} if need else {}
        remember(about, numbers)
    return Memory(int(numbers["fixed"] or 0), int(numbers["per_image"] or 0)) if numbers else None


def _counted(skeleton: Backbone | None, phase: Phase, recipe: Recipe, *, batch: int, precision: str) -> Memory | None:
    try:
        return phase_memory(skeleton, phase, recipe, batch=batch, precision=precision) if skeleton else None
    except (NotImplementedError, RuntimeError):  # a network that computes with the values of its tensors
        return None


def _tried(prepared: Prepared, phase: Phase, batch: int) -> int:
    """Take steps on empty images until one fits; weights and statistics are left as they were.

    What a run holds beside a step is held meanwhile: the optimiser's averages, the copy of the trained
    weights that would be delivered, and a margin for what kernels take and memory loses in pieces.
    """
    backbone = prepared.backbone
    model, device, autocast = backbone.model, prepared.compute.device, prepared.compute.autocast
    recipe = prepared.recipe
    kept = {name: tensor.clone() for name, tensor in model.named_buffers()}

    def attempt(size: int) -> None:
        images = blank_images(model, backbone.preprocessing.image_size, count=size)
        held = [torch.empty(int(MARGIN * free_memory(device)), dtype=torch.uint8, device=device)]
        try:
            with freezing(model, phase.plan, backbone.groups), autocast():
                model.train()
                trained = [weight for weight in model.parameters() if weight.requires_grad]
                copies = 1 + OPTIMISERS[recipe.optim.name].averages
                held += [torch.empty_like(weight) for weight in trained for _ in range(copies)]
                total, _ = loss_of(model(images), Tensor.sum, aux_weight=1.0)
                torch.autograd.backward(total)
        finally:
            held.clear()
            model.zero_grad(set_to_none=True)
            model.load_state_dict(kept, strict=False)
            model.eval()

    return tried_batch(batch, attempt)


def _accumulates(batch: int, size: int, phases: Sequence[Phase]) -> str:
    text = f"{size} of the {batch} images of a step go through the network at once; their gradients are accumulated"
    items = (item for phase in phases for item in phase.plan.groups if item.group != "head")
    trains_norms = any(item.norm_statistics == "updated" for item in items)
    return text + (
        f", and batch norm, which is trained, sees {counted(size, 'image')} at a time" if trains_norms else ""
    )
