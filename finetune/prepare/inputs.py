"""The inputs of a run: its data and its backbone, read as the recipe says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune import ranks
from finetune import recipe as recipes
from finetune.backbone import automatic
from finetune.backbone import load as backbones
from finetune.backbone.adapted import with_depth, with_fit, with_range, with_statistics
from finetune.backbone.load import Architecture, Backbone
from finetune.belongings import OFF
from finetune.checkpoint import run_folder
from finetune.checkpoint.lineage import contents_seen, run_of
from finetune.checkpoint.saved import pinned_task
from finetune.data import balance, checks, sources, split
from finetune.data.clashes import conflicts
from finetune.data.loaders import ImageBatches, ImageDataset
from finetune.data.places import settled_path, shards_named
from finetune.data.shards import look_through_together
from finetune.data.statistics import FULL_LEVEL, LEVEL, STATISTICS
from finetune.device import Compute, in_fast_layout
from finetune.errors import BackboneError, DataError, RecipeError
from finetune.features.engines import check_engine
from finetune.images.pixels import PixelCache, opened_or_none
from finetune.images.transforms import plain_view
from finetune.prepare.asked import check_data
from finetune.settings import EMBEDDED, Recipe
from finetune.strategy.strategies import is_pretrained
from finetune.tasks import TASKS, Quantity
from finetune.types import Event, Manifest, OnEvent, ignore
from finetune.values import TASK_LOSSES
from finetune.wording import counted

OF_ONE_CLASS: dict[str, tuple[Any, ...]] = {  # keys for one class per image, and values for off
    "loss.label_smoothing": OFF["loss.label_smoothing"],
    "regularise.cutmix": (0.0,),  # what is cut out of an image may be any of its classes
    "train.balance": ("auto", "none"),
    "train.calibrate": ("auto", False),
}


@dataclass(slots=True)
class Inputs:
    """What a recipe is computed on: its data, its backbone, where images lie decoded, and how this machine computes.

    The recipe is as it was asked for, or resolved.
    """

    recipe: Recipe
    manifest: Manifest
    backbone: Backbone
    pixels: PixelCache | None
    compute: Compute


@contextmanager
def computing_as(recipe: Recipe, *, on_event: OnEvent = ignore) -> Iterator[Compute]:
    """Compute inside the block as a recipe asks, and report what a user should know about that.

    Raises:
        ResourceError: this machine does not have what is asked for.
    """
    compute = Compute.of(recipe.train)
    check_engine(recipe.cache.engine, compute.device, compute.precision)
    if compute.note:
        on_event(Event.message(compute.note))
    with compute.in_force():
        yield compute


def with_backbone(recipe: Recipe, *, on_event: OnEvent = ignore) -> Recipe:
    """Return the recipe with a backbone by name in place of auto, and say which where it is not the first choice.

    What several runs share, or what is gone on with later, is chosen once: by then the hub may answer otherwise.

    Raises:
        RecipeError: it is to be chosen among several by what they do on the data, which `run` and `plan` do alone.
    """
    backbone = recipe.backbone
    if backbone.among not in ("auto", "none"):
        raise RecipeError(
            "backbone.among is for `finetune run` and `finetune plan`: name a backbone here",
            hint="`finetune backbones rank --data DIR NAMES` says which is best; give that as --backbone or --weights.",
        )
    if backbone.name != "auto" or backbone.weights != "none":
        return recipe
    chosen = ranks.agreed(lambda: automatic.chosen(is_pretrained=_is_pretrained(recipe)))
    if chosen.line:
        on_event(Event.warning(chosen.line) if chosen.name == EMBEDDED else Event.message(chosen.line))
    return recipes.update(recipe, {"backbone.name": chosen.name})


def architecture_of(recipe: Recipe) -> Architecture:
    """Return the architecture that a recipe names.

    Raises:
        BackboneError: it is unknown. RecipeError: its pool is named twice.
    """
    weights = None if recipe.backbone.weights == "none" else Path(recipe.backbone.weights).expanduser()
    name, arguments = recipe.backbone.name, recipe.backbone.model_args
    of = backbones.architecture(name, weights=weights, pretrained=_is_pretrained(recipe), model_args=arguments)
    of = _of_channels(of, recipe.data.channels)
    asked = {argument: recipes.value(recipe, key) for argument, key in backbones.TRAINING_ARGS.items()}
    if (pool := recipe.backbone.pool) != "auto":
        if "global_pool" in arguments:
            raise RecipeError("backbone.pool and global_pool in backbone.model_args both name the pool: keep one")
        own = {name: value for name, value in of.model_args.items() if name != "global_pool"}
        of = replace(of, pool=pool, model_args=own)
    return replace(of, training_args={argument: rate for argument, rate in asked.items() if rate != "none"})


def _of_channels(of: Architecture, channels: int) -> Architecture:
    """Return an architecture that takes images with this number of channels.

    Raises:
        BackboneError: it names another number itself.
    """
    named = of.model_args.get("in_chans", channels)
    if named != channels:
        raise BackboneError(
            f"{of.name} with in_chans = {named}: images have {counted(channels, 'channel')} here (data.channels)",
            hint="Leave in_chans out of backbone.model_args; data.channels says it. To have a stem of one"
            " channel spread over three, name its file and the network: --weights FILE --backbone NAME.",
        )
    return of if channels == 3 else replace(of, model_args={**of.model_args, "in_chans": channels})


def _is_pretrained(recipe: Recipe) -> bool:
    return recipe.backbone.pretrained and is_pretrained(recipe.strategy.name)


def load_backbone(
    recipe: Recipe, of: Architecture, compute: Compute, *, num_classes: int, classes: Sequence[str] = ()
) -> Backbone:
    """Load the backbone of a recipe with a fresh head, on the device; in every process that of the first."""
    size, task = recipe.backbone.image_size, pinned_task(recipe)
    # The rows of another task mean something else; those that say a number are not in the scale of training.
    has_rows = of.task == task != "regress"
    backbone = backbones.load(
        of,
        num_classes=num_classes,
        image_size=None if size == "auto" else size,
        seed=recipe.train.seed,
        classes=classes if has_rows else (),
    )
    if not any(group.is_head for group in backbone.groups):
        raise BackboneError(f"{of.name} has no classifier to train")
    in_fast_layout(backbone.model, compute.device)
    ranks.share_model(backbone.model)
    backbone = with_depth(with_range(backbone, range_named(recipe)), recipe.data.bands.depth)
    backbone = with_fit(backbone, recipe.data.fit)
    named = recipe.data.statistics
    if isinstance(named, str):
        return backbone
    if len(named[0]) != recipe.data.channels:
        raise RecipeError(
            f"data.statistics has {counted(len(named[0]), 'number')} for {counted(recipe.data.channels, 'channel')}"
        )
    return with_statistics(backbone, *named)


def measured_statistics(inputs: Inputs, *, on_event: OnEvent = ignore) -> Inputs:
    """Return inputs whose pixels are standardised by those of their train images, where the recipe asks for it."""
    kind = inputs.recipe.data.statistics
    if kind == "auto":
        kind = "data" if inputs.recipe.data.bands.is_full else "pretrained"
    if not isinstance(kind, str) or kind == "pretrained":
        return inputs
    measured = ranks.agreed(lambda: _statistics(inputs, kind))
    taken, divided = (", ".join(f"{number:.3g}" for number in numbers) for numbers in measured)
    images_of = counted(len(inputs.manifest.split("train")), "train image")
    on_event(Event.message(f"pixels, by {images_of}: {taken} is subtracted, the rest divided by {divided}"))
    backbone = with_statistics(inputs.backbone, *measured)
    pixels = _filled_pixels(inputs.recipe, inputs.manifest, backbone, on_event)  # borders have the mean colour
    recipe = recipes.update(inputs.recipe, {"data.statistics": measured})
    return replace(inputs, recipe=recipe, backbone=backbone, pixels=pixels)


def _statistics(inputs: Inputs, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of the train images' pixels, or what stands for them, for each channel."""
    own, samples = inputs.backbone.preprocessing, inputs.manifest.split("train")
    dataset = ImageDataset(inputs.manifest.root, samples, plain_view(own), own, seed=None, pixels=inputs.pixels)
    batches = ImageBatches(dataset, preprocessing=own, batch_size=32, device=torch.device("cpu"))
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (own.mean, own.std))
    least = FULL_LEVEL if own.bands.is_full else LEVEL
    return STATISTICS[kind]((images * std + mean for images, _ in batches.epoch()), least)


def _filled_pixels(recipe: Recipe, manifest: Manifest, backbone: Backbone, on_event: OnEvent) -> PixelCache | None:
    """Return the pixel cache of a scanned manifest, filled with what it lacks."""
    pixels = pixels_of(recipe, manifest, backbone)
    checks.fill(manifest, pixels, on_event=on_event)
    return as_filled(pixels)


def as_filled(pixels: PixelCache | None) -> PixelCache | None:
    """Return a pixel cache as filled by the first process."""
    if pixels is not None and not ranks.is_first():
        pixels.entry.refresh()
    return pixels


def with_task(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Return the recipe with the task of its data and a loss by name.

    Raises:
        RecipeError: its loss, or what it does about classes, is of another task.
    """
    task, losses = manifest.task, TASK_LOSSES[manifest.task]
    is_of_one = task == "classify"
    wrong = [] if recipe.loss.name in ("auto", *losses) else ["loss.name"]
    wrong += [key for key, usual in OF_ONE_CLASS.items() if not is_of_one and recipes.value(recipe, key) not in usual]
    if wrong:
        given = (f"{key} = {recipes.value(recipe, key)!r}" for key in wrong)
        raise RecipeError(
            [f"{text} has no meaning where an image has {TASKS[task].what}" for text in given],
            hint=f"The data has the task {task}, with the losses {' and '.join(losses)}; --task names another.",
        )
    settled = {"data.task": task, "loss.name": losses[0] if recipe.loss.name == "auto" else recipe.loss.name}
    return recipes.update(
        recipe, settled if is_of_one else {**settled, "train.balance": "none", "train.calibrate": False}
    )


def range_named(recipe: Recipe) -> tuple[float, float] | None:
    """Return what a recipe says is black and white in deep images; None if the data is to tell."""
    return None if recipe.data.value_range == "auto" else recipe.data.value_range


def at_range(backbone: Backbone, manifest: Manifest) -> Backbone:
    """Return the backbone with the range of its data, unless the recipe names one."""
    if backbone.preprocessing.value_range or not manifest.value_range:
        return backbone
    return with_range(backbone, manifest.value_range)


def read_inputs(
    recipe: Recipe, *, of: Architecture | None = None, manifest: Manifest | None = None, on_event: OnEvent = ignore
) -> Inputs:
    """Load the backbone of a recipe, read, scan and split its data, say what was found, and fill the pixel cache.

    `of` is the architecture and `manifest` the data, where they were read before. Images deeper than 8 bits are
    kept in a second pass: only after the first is it known what is white.

    Raises:
        DataError, BackboneError, RecipeError, ResourceError: what cannot be used, and the way out.
    """
    of, compute = of or architecture_of(recipe), Compute.of(recipe.train)
    listed = manifest or list_together(recipe, on_event=on_event)
    recipe = with_task(recipe, listed)
    backbone = load_backbone(recipe, of, compute, num_classes=len(listed.classes), classes=listed.classes)
    if manifest is not None:
        backbone = at_range(backbone, manifest)
        inputs = Inputs(recipe, manifest, backbone, pixels_of(recipe, manifest, backbone), compute)
        return measured_statistics(inputs, on_event=on_event)
    pixels = pixels_of(recipe, listed, backbone)
    manifest = read_data(recipe, listed, pixels=pixels, on_event=on_event)
    for note in _seen_before(of.weights, manifest):
        on_event(Event.warning(note))
    ranged = at_range(backbone, manifest)
    pixels = as_filled(pixels) if ranged is backbone else _filled_pixels(recipe, manifest, ranged, on_event)
    return measured_statistics(Inputs(recipe, manifest, ranged, pixels, compute), on_event=on_event)


def _seen_before(weights: Path | None, manifest: Manifest) -> Iterator[str]:
    """Yield how many images of val and test the weights have been trained on, by their content."""
    folder = None if weights is None else run_of(weights)
    seen = set() if folder is None else contents_seen(folder)
    for name in ("val", "test"):
        samples = manifest.split(name)
        count = sum(sample.digest in seen for sample in samples)
        if count:
            yield (
                f"the run that the weights come from, or one before it, was trained on {count:,} of the"
                f" {counted(len(samples), 'image')} of {name}: {name} looks too good; splits of your own can keep"
                " such images in train"
            )


def reloaded(inputs: Inputs, *, of: Architecture | None = None) -> Backbone:
    """Return the backbone of a run loaded anew, with all its layer groups and a fresh head, at its range."""
    recipe, num_classes = inputs.recipe, len(inputs.manifest.classes)
    classes = inputs.manifest.classes
    loaded = load_backbone(
        recipe, of or architecture_of(recipe), inputs.compute, num_classes=num_classes, classes=classes
    )
    return at_range(loaded, inputs.manifest)


def skeleton_of(recipe: Recipe, *, num_classes: int | None) -> Backbone:
    """Build the network of a recipe without memory for its weights (None keeps its own number of classes)."""
    size = recipe.backbone.image_size
    built = backbones.skeleton(
        architecture_of(recipe), num_classes=num_classes, image_size=None if size == "auto" else size
    )
    return with_depth(built, recipe.data.bands.depth)


def list_data(recipe: Recipe, *, is_to_train: bool = True, on_event: OnEvent = ignore) -> Manifest:
    """Read which images and classes the data of a recipe has, without opening an image.

    Raises:
        DataError, RecipeError: none that can be read; or, where it is to train on, too few classes.
    """
    check_data(recipe)
    data = recipe.data
    place = settled_path(data.path)
    if not run_folder.is_utf8(place):
        raise DataError(f"the name of {place} is not UTF-8: the recipe of a run cannot hold it", hint="Rename it.")
    listed = sources.read(
        data.path,
        image_column=data.image_column,
        label_column=data.label_column,
        split_column=data.split_column,
        group_by=data.group_by,
        layout=data.layout,
        task=data.task,
        separator=data.label_separator,
        needs_two_classes=is_to_train,
        needs_train=is_to_train,
        on_event=on_event,
    )
    return replace(listed, bands=data.bands)


def list_together(recipe: Recipe, *, on_event: OnEvent = ignore) -> Manifest:
    """List the data of a recipe in the first process of a run, which tells the others; all look through shards."""
    if ranks.count() > 1 and recipe.data.path and shards_named(recipe.data.path) is not None:
        look_through_together(recipe.data.path, on_event=on_event)
    return ranks.agreed(lambda: list_data(recipe, on_event=on_event))


def pixels_of(recipe: Recipe, manifest: Manifest, backbone: Backbone) -> PixelCache | None:
    """Return the pixel cache of a recipe's data at its backbone's size, if it is wanted and fits."""
    return opened_or_none(
        manifest.root,
        preprocessing=backbone.preprocessing,
        num_images=len(manifest.samples),
        settings=recipe.cache,
    )


def read_data(
    recipe: Recipe, listed: Manifest | None = None, *, pixels: PixelCache | None = None, on_event: OnEvent = ignore
) -> Manifest:
    """Read, scan and split the data of a recipe, and say what was found; what is decoded fills the pixel cache."""
    scanned = checks.scan(
        listed or list_data(recipe), pixels=pixels, value_range=range_named(recipe), on_event=on_event
    )
    manifest = split.assign_as(scanned, recipe.split)
    on_event(Event.message(describe_data(manifest)))
    for note in data_notes(manifest):
        on_event(Event.warning(note))
    return manifest


def data_notes(manifest: Manifest) -> tuple[str, ...]:
    """Return what users should know about their data before anything is trained on it."""
    return (
        *manifest.notes,
        *conflicts(manifest),
        *balance.thin(manifest),
        *balance.outweighed(manifest),
    )


def describe_data(manifest: Manifest) -> str:
    """Return one line about a data set."""
    counts = [f"{len(manifest.split(name))} {name}" for name in ("train", "val", "test") if manifest.split(name)]
    text = f"{len(manifest.samples)} images {_shown(manifest)}: {', '.join(counts)}"
    return "; ".join((text, *problem_notes(manifest)))


def _shown(manifest: Manifest) -> str:
    """Return what the images of a data set have, in words."""
    if manifest.task == "classify":
        return f"in {len(manifest.classes)} classes"
    if manifest.task == "multilabel":
        mean = sum(len(sample.target.classes) for sample in manifest.samples) / max(1, len(manifest.samples))
        return f"with any of {len(manifest.classes)} classes ({mean:.1f} on average)"
    numbers = [sample.target.value for sample in manifest.samples if isinstance(sample.target, Quantity)]
    return f"with a number ({manifest.classes[0]}, {min(numbers):g} to {max(numbers):g})"


def problem_notes(manifest: Manifest) -> Iterator[str]:
    """Say how many files cannot be used, and why the first cannot."""
    if manifest.problems:
        first = manifest.problems[0]
        yield f"{len(manifest.problems)} left out, e.g. {first.file} ({first.reason})"
