"""How images pass through a backbone: in plain batches, or through the feature cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.backbone.load import Backbone
from finetune.data.loaders import ImageBatches, ImageDataset
from finetune.data.pixels import PixelCache
from finetune.data.transforms import plain_view
from finetune.device import resolve_device, resolve_precision
from finetune.features.cache import FeatureCache
from finetune.features.sources import Autocast
from finetune.settings import Recipe
from finetune.types import Manifest, OnEvent, Sample


def feature_cache(
    recipe: Recipe,
    manifest: Manifest,
    backbone: Backbone,
    pixels: PixelCache | None,
    *,
    workers: int,
    autocast: Autocast,
    on_event: OnEvent,
    raise_if_stopped: Callable[[], None],
) -> FeatureCache:
    """Return the feature cache of a recipe's data under its backbone."""
    device = resolve_device(recipe.train.device)
    return FeatureCache(
        root=Path(manifest.root),
        preprocessing=backbone.preprocessing,
        augment=recipe.augment,
        settings=recipe.cache,
        network={"name": backbone.architecture.name, "arguments": backbone.model_args},
        seed=recipe.train.seed,
        device=device,
        precision=resolve_precision(recipe.train.precision, device),
        workers=workers,
        autocast=autocast,
        on_event=on_event,
        raise_if_stopped=raise_if_stopped,
        pixels=pixels,
    )


def plain_batches(
    recipe: Recipe,
    manifest: Manifest,
    backbone: Backbone,
    samples: tuple[Sample, ...],
    *,
    batch_size: int | None = None,
    pixels: PixelCache | None = None,
) -> ImageBatches:
    """Return batches of samples in order, as evaluation sees them."""
    preprocessing = backbone.preprocessing
    view = plain_view(preprocessing)
    dataset = ImageDataset(manifest.root, samples, view, preprocessing, seed=None, pixels=pixels)
    size = batch_size or next((n for n in (recipe.train.micro_batch, recipe.train.batch_size) if n != "auto"), 32)
    return ImageBatches(
        dataset,
        preprocessing=preprocessing,
        batch_size=size,
        device=resolve_device(recipe.train.device),
        workers=recipe.train.workers if isinstance(recipe.train.workers, int) else 0,
    )
