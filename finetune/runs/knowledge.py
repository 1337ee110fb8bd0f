"""What a run's classifier knows at its end, kept for `predict --unsure`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.backbone.groups import head_modules
from finetune.data.split import units_of
from finetune.errors import BackboneError
from finetune.features.extract import extract, with_output
from finetune.features.knowledge import FEWEST_VAL, MOST_KEPT, MOST_VALUES, Knowledge, unit_rows
from finetune.prepare.batches import Feeder
from finetune.strategy.evidence import stratified_sample
from finetune.types import Sample


def knowledge_of(feeder: Feeder) -> Knowledge | None:
    """Return what a trained model knows, from val and a stratified sample of at most 1,000 train images.

    None if val or the network tells too little.
    """
    prepared = feeder.prepared
    val, heads = prepared.manifest.split("val"), head_modules(prepared.backbone.model)
    if len(set(units_of(val))) < FEWEST_VAL or not heads:
        return None
    try:
        near_val, outputs, targets = _looked_at(feeder, val)
        room = max(1, MOST_VALUES // near_val.shape[1])
        sample = stratified_sample(prepared.manifest, seed=prepared.recipe.train.seed, most=min(MOST_KEPT, room))
        of_train, _, _ = _looked_at(feeder, sample)
    except BackboneError:  # what reaches the head is unknown
        return None
    known = Knowledge(unit_rows(of_train), np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    confidence, hits = np.empty(0), np.empty(0, dtype=bool)
    if prepared.manifest.task == "classify":
        confidence = confidence_of(outputs)
        hits = (outputs.argmax(dim=1) == targets).numpy()
    return Knowledge(known.features, known.near(near_val), confidence, hits)


def confidence_of(logits: Tensor) -> NDArray[np.float64]:
    """Return the largest probability (N,) of logits (N, K)."""
    largest: NDArray[np.float64] = logits.double().softmax(dim=1).amax(dim=1).numpy()
    return largest


def _looked_at(feeder: Feeder, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what reaches the head (N, D), the outputs (N, K) and the targets (N,) of some images."""
    run, batches = feeder.judged_on(samples)
    look = with_output(run, head_modules(feeder.prepared.backbone.model)[0])
    shown: Iterable[tuple[Any, Tensor]] = batches.epoch()
    (features, outputs), targets = extract(look, shown, autocast=feeder.prepared.compute.autocast)
    if not torch.isfinite(features).all():
        raise BackboneError("what reaches the head is not finite")
    return features, outputs, targets
