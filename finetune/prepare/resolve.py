"""From what is asked for to a recipe with every number settled, and its phases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from finetune import recipe as recipes
from finetune.backbone.adapted import cut_at
from finetune.backbone.freeze import drops_blocks
from finetune.backbone.heads import linear_head
from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier, check_stage, stages
from finetune.data.directions import flip_hints
from finetune.data.places import settled_path
from finetune.errors import RecipeError
from finetune.images.augmentation import pieces_of
from finetune.optim.class_weights import class_weights, is_uneven
from finetune.optim.optimisers import OPTIMISERS
from finetune.prepare.inputs import Inputs, with_task
from finetune.settings import RANGE_TEST, Recipe
from finetune.strategy.strategies import (
    Choice,
    Strategy,
    epochs_for,
    is_full,
    is_pretrained,
    phases,
    strategy,
    taking,
)
from finetune.types import Manifest, Phase, Verdict
from finetune.values import AUTO_LEVEL, TASK_LOSSES
from finetune.wording import listed

WHAT = {"norm": "norms with weights", "bias": "biases", "lora": "linear or convolution layers"}
BATCHES = {2000: 64, 256: 32, 64: 16, 0: 8}  # from this number of train images on, a step takes that many


def resolve(inputs: Inputs, verdict: Verdict | None = None) -> Recipe:
    """Return the recipe of some inputs with every "auto" settled that changes what is computed."""
    backbone, num_train = inputs.backbone, len(inputs.manifest.split("train"))
    recipe = resolve_numbers(with_task(inputs.recipe, inputs.manifest), backbone, verdict, num_train=num_train)
    weights = None if backbone.architecture.is_embedded else backbone.architecture.weights
    changes = {
        "data.path": settled_path(recipe.data.path),
        "data.value_range": backbone.preprocessing.value_range or "auto",
        "data.depth": recipe.data.bands.depth,
        "data.statistics": _or(recipe.data.statistics, "pretrained"),
        "backbone.name": backbone.architecture.name,
        "backbone.weights": str(weights.resolve()) if weights else "none",
        "backbone.pool": backbone.architecture.pool,
        "backbone.image_size": backbone.preprocessing.image_size[0],
        "train.precision": inputs.compute.precision,
        "train.fold_norms": folds_norms(recipe, inputs.compute.device),
        "augment.level": _or(recipe.augment.level, AUTO_LEVEL),
        "train.balance": _or(recipe.train.balance, "weights" if is_uneven(train_counts(inputs)) else "none"),
    }
    return recipes.update(recipe, changes)


def train_counts(inputs: Inputs) -> list[int]:
    """Return the number of train images of each class (K,)."""
    return list(inputs.manifest.counts("train").values())


def folds_norms(recipe: Recipe, device: torch.device) -> bool:
    """Return whether training folds norms that stand still into convolutions; on a GPU that was never timed."""
    return bool(_or(recipe.train.fold_norms, device.type == "cpu"))


def wanted_batch(num_train: int) -> int:
    """Return the batch size for a number of train images."""
    return next(size for least, size in BATCHES.items() if num_train >= least)


def resolve_numbers(
    recipe: Recipe, backbone: Backbone, verdict: Verdict | None, *, num_train: int | None = None
) -> Recipe:
    """Return the recipe with the strategy and its numbers settled; needs no data except for a verdict."""
    name = verdict.strategy if verdict else recipe.strategy.name
    numbers = strategy(name)
    batch_size = _or(recipe.train.batch_size, wanted_batch(num_train) if num_train else "auto")
    usual = epochs_for(name, num_train, int(batch_size)) if num_train else numbers.epochs
    epochs = _or(recipe.train.epochs, usual)
    top_k = _or(recipe.strategy.top_k, (verdict and verdict.top_k) or numbers.top_k or "auto")
    probe_at = _or(recipe.strategy.probe_at, (verdict and verdict.probe_at) or _last(backbone))
    lr = numbers.lr * OPTIMISERS[recipe.optim.name].lr_factor
    changes = {
        "strategy.name": name,
        "strategy.top_k": top_k,
        "strategy.probe_at": check_stage(probe_at, backbone.groups) if "probe_at" in numbers.takes else "auto",
        "train.batch_size": batch_size,
        "train.epochs": epochs,
        "optim.lr": lr if recipe.optim.lr in ("auto", RANGE_TEST) else recipe.optim.lr,
        "optim.weight_decay": _or(recipe.optim.weight_decay, numbers.weight_decay),
        "optim.layer_decay": _or(recipe.optim.layer_decay, numbers.layer_decay),
        "loss.label_smoothing": _or(recipe.loss.label_smoothing, _smoothing(recipe, numbers, top_k)),
    }
    return recipes.update(recipe, changes)


def _smoothing(recipe: Recipe, numbers: Strategy, top_k: int | str) -> float:
    """Return the share of a label that is spread over all classes where nobody names one."""
    is_cross_entropy = recipe.loss.name in ("auto", TASK_LOSSES["classify"][0])
    is_of_one_class = recipe.data.task in ("auto", "classify")
    return numbers.smoothing if is_cross_entropy and is_of_one_class and top_k != 1 else 0.0


def plan_phases(recipe: Recipe, backbone: Backbone) -> tuple[Phase, ...]:
    """Return the phases of a resolved recipe."""
    groups = backbone.groups
    if is_staged(recipe, backbone):
        deepest = stages(str(recipe.strategy.probe_at), groups)[-1]
        cut = [group.name for group in groups].index(deepest)
        groups = (*groups[: cut + 1], groups[-1])
    planned = phases(choice_of(recipe, backbone), groups)
    trained = {item.trains for phase in planned for item in phase.plan.groups} - {"none", "all"}
    for trains in trained:
        if not any(group.moved(trains) for group in groups if not group.is_head):
            raise RecipeError(
                f"strategy {recipe.strategy.name}: {backbone.architecture.label} has no {WHAT[trains]} to train",
                hint="Choose another strategy; `finetune plan --layers` shows the layers.",
            )
    return planned


def choice_of(recipe: Recipe, backbone: Backbone) -> Choice:
    """Return a resolved recipe's strategy with its numbers."""
    return Choice(
        recipe.strategy.name,
        epochs=int(recipe.train.epochs),
        lr=float(recipe.optim.lr),
        layer_decay=float(recipe.optim.layer_decay),
        top_k=None if recipe.strategy.top_k == "auto" else recipe.strategy.top_k,
        reinit=recipe.strategy.reinit,
        updates_norms=recipe.strategy.norm_statistics == "updated",
        lora_rank=recipe.strategy.lora_rank,
        has_linear_head=is_staged(recipe, backbone) or linear_head(backbone.model) is not None,
    )


def remarks(recipe: Recipe, backbone: Backbone) -> Iterator[str]:
    """Yield what users may not expect of a resolved recipe."""
    choice = choice_of(recipe, backbone)
    if is_full(choice, backbone.groups):
        yield f"top-k {choice.top_k} is all layer groups of this backbone: the same as full"
    if (
        choice.reinit
        and is_pretrained(choice.strategy)
        and any(not phase.plan.frozen for phase in plan_phases(recipe, backbone))
    ):
        yield f"{choice.strategy} with reinit re-initialises every layer: this is training from scratch"
    if not choice.has_linear_head and choice.strategy == "linear-probe":
        yield "the head of this network is more than one linear layer: it is trained by gradient descent, not solved"
    is_inner = isinstance(backbone.model, StagedClassifier) or is_staged(recipe, backbone)
    if is_inner and backbone.architecture.pool != "auto":
        yield "the probe takes the mean over positions at inner layer groups, whatever backbone.pool says"
    if recipe.regularise.cutmix:
        for phase in plan_phases(recipe, backbone):
            if phase.plan.frozen:
                yield f"phase {phase.name} trains on features, in which nothing is cut: regularise.cutmix is not used"
    if recipe.regularise.drop_path not in ("none", 0.0):
        model, groups, size = backbone.model, backbone.groups, backbone.preprocessing.image_size
        for phase in plan_phases(recipe, backbone):
            if phase.solver != "lbfgs" and not drops_blocks(model, phase.plan, groups, image_size=size):
                yield f"phase {phase.name} trains no residual blocks: regularise.drop_path is not used"
    if all(phase.solver == "lbfgs" for phase in plan_phases(recipe, backbone)) and (unused := _of_steps(recipe)):
        yield f"the head is solved, as {_solved_as(recipe)}, not trained by steps: {listed(unused)} not used"


def _solved_as(recipe: Recipe) -> str:
    """Return the name of a solved head's regression."""
    return "ridge regression" if recipe.data.task == "regress" else "logistic regression"


def balancing(recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    """Yield what is done about classes of different size, if anything."""
    counts = {name: count for name, count in manifest.counts("train").items() if count}
    if recipe.train.balance not in ("weights", "sampling") or not counts:
        return
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    weights = dict(zip(counts, class_weights(list(counts.values())), strict=True))
    does = "counts for" if recipe.train.balance == "weights" else "is drawn as often as"
    yield (
        f"balance: a train image of {least} ({counts[least]:,}) {does} {weights[least] / weights[most]:.1f} of"
        f" {most} ({counts[most]:,}); train.balance = 'none' counts all alike"
    )


def flipping(recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    """Yield why images should perhaps not be flipped, if they are."""
    pieces = pieces_of(recipe.augment)
    if pieces is not None and pieces.horizontal_flip:
        for hint in flip_hints(manifest):
            yield f"{hint}: train without, --set augment.horizontal_flip=0"


def _of_steps(recipe: Recipe) -> list[str]:
    """Return the settings of training by steps that a recipe changes, but for numbers that a strategy settles."""
    losses = {"loss.name": TASK_LOSSES[recipe.data.task][0]} if recipe.data.task != "auto" else {}
    usual = recipes.update(Recipe(), {**losses, "loss.label_smoothing": 0.0})
    settled = ("optim.lr", "optim.weight_decay", "optim.layer_decay")
    keys = [
        key for key in recipes.fields() if key.startswith(("loss.", "optim.", "regularise.")) and key not in settled
    ]
    return [key for key in keys if recipes.value(recipe, key) != recipes.value(usual, key)]


def is_staged(recipe: Recipe, backbone: Backbone) -> bool:
    """Return whether a resolved recipe asks for a probe at an inner layer group."""
    return recipe.strategy.name in taking("probe_at") and recipe.strategy.probe_at not in ("auto", _last(backbone))


def with_head(recipe: Recipe, backbone: Backbone) -> Backbone:
    """Return the backbone unchanged, or cut at the inner layer group that is probed."""
    return cut_at(backbone, str(recipe.strategy.probe_at)) if is_staged(recipe, backbone) else backbone


def _last(backbone: Backbone) -> str:
    return [group.name for group in backbone.groups if not group.is_head][-1]


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value == "auto" else value
