"""How images pass through a backbone: in plain batches, in drawn views, or through the feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune import ranks
from finetune.data.loaders import ImageBatches, ImageDataset, auto_workers
from finetune.data.targets import strata_of
from finetune.evaluation.forward import collect_logits, over_views, watched
from finetune.evaluation.views import Tta
from finetune.features.cache import FeatureCache
from finetune.features.divide import Trunk, network_trunk
from finetune.features.engines import FEWEST, equip
from finetune.features.graphs import IndivisibleError
from finetune.features.sources import TrunkBatches, of_trunk_batch, trunk_batch
from finetune.images.transforms import View, augmented_view, five_crops_view, plain_view
from finetune.optim.class_weights import drawing_shares
from finetune.prepare.inputs import Inputs
from finetune.types import NEVER, OnEvent, Sample, StopSign, ignore


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
        workers=_workers_of_a_pass(inputs, num_images),
        plain_workers=_plain_workers(inputs),
        autocast=compute.autocast,
        on_event=on_event,
        stop=stop,
        pixels=inputs.pixels,
    )


def plain_batches(
    inputs: Inputs, samples: Sequence[Sample], *, batch_size: int | None = None, tta: Tta = "none"
) -> ImageBatches:
    """Return batches of samples in order, as evaluation sees them; of five crops (B, C, 5 H, W)."""
    train, own = inputs.recipe.train, inputs.backbone.preprocessing
    size = batch_size or next((n for n in (train.micro_batch, train.batch_size) if n != "auto"), 32)
    if tta == "5crop":  # the pixel cache has only the middle one
        return _batches(
            replace(inputs, pixels=None), samples, five_crops_view(own), size, _plain_workers(inputs), seed=None
        )
    return _batches(inputs, samples, plain_view(own), size, _plain_workers(inputs), seed=None)


def augmented_batches(inputs: Inputs, samples: Sequence[Sample]) -> ImageBatches:
    """Return batches of samples in an order and in views that are drawn anew every epoch."""
    recipe = inputs.recipe
    view = augmented_view(inputs.backbone.preprocessing, recipe.augment)
    size, workers = int(recipe.train.batch_size), _workers(inputs, len(samples))
    return _batches(inputs, samples, view, size, workers, seed=recipe.train.seed, shares=shares_drawn(inputs, samples))


def shares_drawn(inputs: Inputs, samples: Sequence[Sample]) -> NDArray[np.float64] | None:
    """Return the probability (N,) of drawing each sample; None where each comes once an epoch."""
    if inputs.recipe.train.balance != "sampling":
        return None
    return drawing_shares(strata_of(samples), len(inputs.manifest.classes))


def logits_of(
    inputs: Inputs,
    samples: Sequence[Sample],
    *,
    batch_size: int | None = None,
    tta: Tta = "none",
    what: str = "measure",
    on_event: OnEvent = ignore,
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) of a frozen network on samples, as evaluation sees them, and the class indices (N,).

    Of many images the network is run by the fastest engine (see `features.engines`), over more views than the plain
    one (`tta`) by torch. `on_event` hears how far it is with `what`.
    """
    model, compute = inputs.backbone.model, inputs.compute
    batches = plain_batches(inputs, samples, batch_size=batch_size, tta=tta)
    trunk = _engine_of(inputs, samples) if tta == "none" else None
    if trunk is None:
        shown = watched(batches.epoch(), what, len(samples), on_event=on_event)
        return collect_logits(over_views(model, tta), shown, autocast=compute.autocast)
    passes = TrunkBatches(trunk, batches, autocast=compute.autocast)
    logits, targets = zip(*watched(passes.epoch(), what, len(samples), on_event=on_event), strict=True)
    return torch.cat([rows.cpu() for (rows,) in logits]), torch.cat([rows.cpu() for rows in targets])


def equipped(trunk: Trunk, inputs: Inputs, samples: Sequence[Sample], *, num_images: int) -> tuple[str, str]:
    """Have the fastest engine run a trunk over some images, if that pays; return its name, and the gain in words.

    It is proven on the first samples.
    """
    if not _may_pay(inputs, num_images):
        return "torch", ""
    count = trunk_batch(inputs.compute.device)
    with ranks.unshared():
        images, _ = next(iter(plain_batches(inputs, samples[:count], batch_size=count).epoch()))
    return equip(
        trunk,
        of_trunk_batch(images),
        asked=inputs.recipe.cache.engine,
        num_images=num_images,
        precision=inputs.compute.precision,
        about={"network": inputs.backbone.network, "ends": len(trunk.folds)},
    )


def _may_pay(inputs: Inputs, num_images: int) -> bool:
    """Return whether another engine than torch may pay for a pass, without computing anything."""
    engine = inputs.recipe.cache.engine
    return engine != "torch" and (engine != "auto" or num_images >= FEWEST * trunk_batch(inputs.compute.device))


def _engine_of(inputs: Inputs, samples: Sequence[Sample]) -> Trunk | None:
    """Return the whole network under another engine; None if torch runs it."""
    if not _may_pay(inputs, len(samples)):
        return None  # before it is traced: that takes longer than a short pass
    try:
        trunk = network_trunk(inputs.backbone.model)
    except IndivisibleError:
        return None
    name, _ = equipped(trunk, inputs, samples, num_images=len(samples))
    return None if name == "torch" else trunk


def _batches(
    inputs: Inputs,
    samples: Sequence[Sample],
    view: View,
    batch_size: int,
    workers: int,
    *,
    seed: int | None,
    shares: NDArray[np.float64] | None = None,
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
        shares=shares,
    )


def _plain_workers(inputs: Inputs) -> int:
    return 0 if inputs.compute.workers == "auto" else inputs.compute.workers


def _workers_of_a_pass(inputs: Inputs, num_images: int) -> int:
    """Return how many processes draw the views of a pass; auto takes no lone one, since a thread need not send them."""
    count = _workers(inputs, num_images)
    return 0 if count == 1 and inputs.compute.workers == "auto" else count


def _workers(inputs: Inputs, num_images: int) -> int:
    asked = inputs.compute.workers
    return auto_workers(num_images, inputs.compute.device) if asked == "auto" else asked
