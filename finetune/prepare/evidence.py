"""The evidence of auto: one pass of the frozen backbone over a sample of train, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.groups import head_modules
from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier
from finetune.backbone.trace import trace
from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.data.split import units_of
from finetune.errors import BackboneError
from finetune.evaluation.intervals import bootstrap
from finetune.features.cache import Known
from finetune.features.extract import before_head, extract, taps
from finetune.features.shift import norm_shift
from finetune.features.sources import TrunkBatches
from finetune.images.decode import UndecodableError, read_rgb, size_of
from finetune.images.transforms import picture_side
from finetune.prepare.inputs import Inputs
from finetune.prepare.passes import equipped, feature_cache, plain_batches
from finetune.process import num_cores
from finetune.settings import JOIN
from finetune.strategy import evidence
from finetune.strategy.evidence import LookedAt
from finetune.types import Confidence, Event, Evidence, OnEvent, Sample, ignore

MOST_LOOKED_AT = 64  # images looked at for more than features: sides, grey, statistics of norms
GREY = 6  # levels by which the channels of a grey image may differ


@dataclass(frozen=True, slots=True)
class Tapped:
    """The pooled features (N, D) of every layer group for the images of a sample."""

    digests: tuple[str, ...]
    features: dict[str, Tensor]

    def known(self, model: nn.Module) -> Known | None:
        """Return what reaches the head of a model, if it is among these features."""
        names = model.at.split(JOIN) if isinstance(model, StagedClassifier) else list(self.features)[-1:]
        if not set(names) <= self.features.keys():
            return None
        parts = [self.features[name] for name in names]
        return Known(self.digests, (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1),))


def measure_evidence(inputs: Inputs, *, on_event: OnEvent = ignore) -> tuple[Evidence, Tapped]:
    """Run the frozen backbone over a sample once; return the evidence, and the features for later training.

    Of several processes of a run the first has the features.
    """
    chosen = evidence.stratified_sample(inputs.manifest, seed=inputs.recipe.train.seed)
    names, features, targets = _features(inputs, chosen, on_event)
    measured = ranks.agreed(lambda: _measured(inputs, chosen, names, features, targets, on_event))
    return measured, Tapped(tuple(s.digest for s in chosen), dict(zip(names, features, strict=True)))


def _measured(
    inputs: Inputs,
    chosen: Sequence[Sample],
    names: Sequence[str],
    features: Sequence[Tensor],
    targets: Tensor,
    on_event: OnEvent,
) -> Evidence:
    """Return the evidence of a sample with these features (N, D), one tensor a layer group, and targets (N,)."""
    manifest = inputs.manifest
    return evidence.evidence_of(
        manifest,
        dict(zip(names, features, strict=True)),
        targets,
        looked_at=_looked_at(inputs, chosen),
        # With several things in one image any classifier is unsure, however well it knows each of them.
        confidence=None
        if manifest.task == "multilabel"
        else _confidence(inputs.backbone, features[-1], units_of(chosen)),
        units=units_of(chosen),
        on_event=on_event,
    )


def _features(
    inputs: Inputs, chosen: Sequence[Sample], on_event: OnEvent
) -> tuple[list[str], tuple[Tensor, ...], Tensor]:
    """Return the names of the layer groups, their pooled features (N, D), and the class indices (N,)."""
    backbone, autocast = inputs.backbone, inputs.compute.autocast
    names = [group.name for group in backbone.groups if not group.is_head]
    try:
        traced = trace(backbone.model, backbone.groups, image_size=backbone.preprocessing.image_size)
    except BackboneError as error:
        on_event(Event.warning(f"{error.message}; measured on the last layer group alone"))
        tap = before_head(backbone.model, head_modules(backbone.model)[0])
        images = plain_batches(inputs, chosen).epoch()
        features, targets = extract(tap, images, autocast=autocast)
        return names[-1:], features, targets
    names = [name for name in names if name in traced.ends]
    trunk = taps(traced, names)
    equipped(trunk, inputs, chosen, num_images=len(chosen))
    cache = feature_cache(inputs, num_images=len(chosen), on_event=on_event)
    shapes = tuple((traced.widths[name],) for name in names)
    kept: Any = None
    if inputs.recipe.cache.features != "none" and (room := cache.room(trunk, shapes, [(chosen, 1)])):
        kept = cache.batches(room, chosen, views=1, batch_size=len(chosen), seed=None)
    if kept is None:
        kept = TrunkBatches(trunk, plain_batches(inputs, chosen), autocast=autocast)
    features, targets = extract(lambda rows: rows, kept.epoch())
    return names, features, targets


def _looked_at(inputs: Inputs, chosen: Sequence[Sample]) -> LookedAt:
    """Look at some of the images themselves, and at their effect on the norms."""
    backbone = inputs.backbone
    some = [chosen[place * len(chosen) // MOST_LOOKED_AT] for place in range(MOST_LOOKED_AT)]
    some = list(dict.fromkeys(some))
    look = partial(_look, inputs)
    (looks,) = read_ahead(look, [some], num_threads=num_cores(most=MOST_THREADS))
    sides, greys = [look[0] for look in looks if look], [look[1] for look in looks if look]
    batches = plain_batches(inputs, some, batch_size=len(some))
    images, _ = next(iter(batches.epoch()))
    shift = norm_shift(backbone.model, backbone.groups, images, units_of(some))
    return LookedAt(
        short_side=float(median(sides)) if sides else None,
        grey_share=sum(greys) / len(greys) if greys else None,
        shift=shift.mean if shift else None,
        shifts=shift.groups if shift else {},
    )


def _look(inputs: Inputs, sample: Sample) -> tuple[int, bool] | None:
    """Return the shorter side of an image and whether it is grey; None if it can no longer be read."""
    file, preprocessing = Path(inputs.manifest.root, sample.file), inputs.backbone.preprocessing
    try:
        side = min(size_of(file))
        shown = read_rgb(file, side=picture_side(preprocessing), value_range=preprocessing.value_range)
    except (UndecodableError, OSError):
        return None
    return side, int(np.ptp(np.asarray(shown, dtype=np.int16), axis=2).max()) <= GREY


def _confidence(backbone: Backbone, features: Tensor, units: Sequence[int]) -> Confidence | None:
    """Ask the classifier that came with the weights, if it is one linear layer on the last features (N, D)."""
    own = backbone.classifier
    if own is None or own.in_features != features.shape[1]:
        return None
    with torch.no_grad():
        log = own.cpu()(features).log_softmax(dim=1)
    entropies = (-(log.exp() * log).sum(dim=1) / np.log(own.out_features)).numpy()
    entropy = bootstrap(lambda chosen: float(entropies[chosen].mean()), len(entropies), units)
    return Confidence(top=float(log.exp().amax(dim=1).mean()), entropy=entropy)
