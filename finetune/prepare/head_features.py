"""What reaches the head of a frozen backbone for a sample of images, from the work of a run's first phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finetune import recipe as recipes
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import head_modules
from finetune.backbone.weights import refuse_random
from finetune.data import checks
from finetune.features.extract import before_head, extract
from finetune.features.sources import trunk_batch
from finetune.images.pixels import PixelCache
from finetune.prepare.batches import Feeder
from finetune.prepare.inputs import Inputs, pixels_of
from finetune.prepare.prepared import planned_run
from finetune.prepare.resolve import resolve
from finetune.types import Event, OnEvent, Sample, ignore


def features_of(inputs: Inputs, samples: Sequence[Sample], *, on_event: OnEvent = ignore) -> tuple[Tensor, Tensor]:
    """Return what reaches the head (N, D) of a frozen backbone, and the class indices (N,).

    The work is that of a run's head-only phase, so that its cache serves both; `val` is there for the
    check that the divided model agrees with the whole, and holds images of the sample again.
    """
    backbone = inputs.backbone
    refuse_random(backbone.weights, backbone.groups)
    judged = tuple(replace(sample, split="val") for sample in samples[: trunk_batch(torch.device("cpu"))])
    plain = recipes.update(inputs.recipe, {"augment.level": "none"})
    small = replace(inputs, recipe=plain, manifest=replace(inputs.manifest, samples=(*samples, *judged)))
    planned = planned_run(small, resolve(small))
    phase = replace(planned.phases[0], solver="lbfgs")  # plain images in order, whatever the head is
    prepared = replace(planned, phases=(phase,), pixels=_pixels(small, on_event))
    with freezing(backbone.model, phase.plan, backbone.groups) as hold:
        work = Feeder(prepared, on_event=on_event).work_of(phase)
        hold(work.run)
        tap = before_head(work.run, head_modules(backbone.model)[0])

        def watched() -> Iterator[Any]:
            for done, batch in enumerate(work.train.epoch(), 1):
                yield batch
                on_event(Event.progress("features", done, len(work.train)))

        (features,), targets = extract(tap, watched(), autocast=inputs.compute.autocast)
    return features, targets


def _pixels(inputs: Inputs, on_event: OnEvent) -> PixelCache | None:
    """Return the pixel cache with the sample in it: candidates of one input size decode it once."""
    sample = inputs.manifest
    pixels = pixels_of(inputs.recipe, sample, inputs.backbone)
    checks.fill(replace(sample, samples=sample.split("train")), pixels, on_event=on_event)
    return pixels
