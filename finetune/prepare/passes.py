"""How images pass through a backbone: in plain batches, in drawn views, or through the feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.data.loaders import ImageBatches, ImageDataset, auto_workers
from finetune.features.cache import FeatureCache
from finetune.images.transforms import View, augmented_view, plain_view
from finetune.prepare.inputs import Inputs
from finetune.types import NEVER, OnEvent, Sample, StopSign


def feature_cache(inputs: Inputs, *, num_images: int, on_event: OnEvent, stop: StopSign = NEVER) -> FeatureCache:
    """Return the feature cache of a recipe's data under its backbone; `num_images` is of its longest pass."""
    recipe, backbone, compute = inputs.recipe, inputs.backbone, inputs.compute
    return FeatureCache(
        root=Path(inputs.manifest.root),
        preprocessing=backbone.preprocessing,
        augment=recipe.augment,
        settings=recipe.cache,
        network={"name": backbone.architecture.name, "arguments": backbone.model_args},
        seed=recipe.train.seed,
        device=compute.device,
        precision=compute.precision,
        workers=_workers(inputs, num_images),
        autocast=compute.autocast,
        on_event=on_event,
        stop=stop,
        pixels=inputs.pixels,
    )


def plain_batches(inputs: Inputs, samples: Sequence[Sample], *, batch_size: int | None = None) -> ImageBatches:
    """Return batches of samples in order, as evaluation sees them."""
    train = inputs.recipe.train
    size = batch_size or next((n for n in (train.micro_batch, train.batch_size) if n != "auto"), 32)
    workers = train.workers if isinstance(train.workers, int) else 0
    return _batches(inputs, samples, plain_view(inputs.backbone.preprocessing), size, workers, seed=None)


def augmented_batches(inputs: Inputs, samples: Sequence[Sample]) -> ImageBatches:
    """Return batches of samples in an order and in views that are drawn anew every epoch."""
    recipe = inputs.recipe
    view = augmented_view(inputs.backbone.preprocessing, recipe.augment)
    size, workers = int(recipe.train.batch_size), _workers(inputs, len(samples))
    return _batches(inputs, samples, view, size, workers, seed=recipe.train.seed)


def _batches(
    inputs: Inputs, samples: Sequence[Sample], view: View, batch_size: int, workers: int, *, seed: int | None
) -> ImageBatches:
    preprocessing = inputs.backbone.preprocessing
    dataset = ImageDataset(inputs.manifest.root, samples, view, preprocessing, seed=seed, pixels=inputs.pixels)
    return ImageBatches(
        dataset,
        preprocessing=preprocessing,
        batch_size=batch_size,
        device=inputs.compute.device,
        workers=workers,
        seed=seed,
    )


def _workers(inputs: Inputs, num_images: int) -> int:
    asked = inputs.compute.workers
    return auto_workers(num_images, inputs.compute.device) if asked == "auto" else asked
