"""What reaches the head of a frozen backbone, of a sample of images, by the work of a run's first phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from finetune.backbone.freeze import freezing
from finetune.backbone.groups import head_modules
from finetune.backbone.load import Backbone
from finetune.backbone.weights import refuse_random
from finetune.data import checks
from finetune.data.pixels import PixelCache
from finetune.device import accelerator, resolve_device
from finetune.features.extract import before_head, extract
from finetune.features.sources import trunk_batch
from finetune.prepare.batches import Worker
from finetune.prepare.inputs import pixels_of
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import plan_phases, resolve
from finetune.settings import Recipe
from finetune.types import Event, Manifest, OnEvent, Sample, ignore


def features_of(
    recipe: Recipe, backbone: Backbone, manifest: Manifest, samples: Sequence[Sample], *, on_event: OnEvent = ignore
) -> tuple[Tensor, Tensor]:
    """Return what reaches the head (N, D) of a frozen backbone, and the class indices (N,).

    The work is that of a run's head-only phase, so that its cache serves both; `val` is there for the
    check that the divided model agrees with the whole, and holds images of the sample again.
    """
    refuse_random(backbone.weights, backbone.groups)
    judged = tuple(replace(sample, split="val") for sample in samples[: trunk_batch(resolve_device("cpu"))])
    small = replace(manifest, samples=(*samples, *judged))
    recipe = resolve(recipe, small, backbone, None)
    phase = replace(plan_phases(recipe, backbone)[0], solver="lbfgs")  # plain images in order, whatever the head
    pixels = _pixels(recipe, backbone, small, on_event)
    prepared = Prepared(recipe, small, backbone, (phase,), None, None, pixels)
    context = accelerator(resolve_device(recipe.train.device), str(recipe.train.precision))
    with freezing(backbone.model, phase.plan, backbone.groups) as hold:
        work = Worker(prepared, context, on_event, lambda: None).work_of(phase)
        hold(work.run)
        tap = before_head(work.run, head_modules(backbone.model)[0])

        def watched() -> Iterator[Any]:
            for done, batch in enumerate(work.train.epoch(), 1):
                yield batch
                on_event(Event("progress", {"task": "features", "done": done, "total": len(work.train)}))

        (features,), targets = extract(tap, watched(), autocast=context.autocast)
    return features, targets


def _pixels(recipe: Recipe, backbone: Backbone, sample: Manifest, on_event: OnEvent) -> PixelCache | None:
    """Return the pixel cache with the sample in it: candidates of one input size decode it once."""
    pixels = pixels_of(recipe, sample, backbone)
    checks.fill(replace(sample, samples=sample.split("train")), pixels, on_event=on_event)
    return pixels
