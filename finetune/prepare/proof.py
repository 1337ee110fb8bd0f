"""The images that an export is proven on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from finetune import recipe as recipes
from finetune.checkpoint.saved import SavedRun
from finetune.exports.proof import ProofImages, WholeSplit
from finetune.prepare.inputs import Inputs
from finetune.prepare.members import logits_on
from finetune.prepare.passes import plain_batches
from finetune.types import Event, Manifest, OnEvent, Sample, Split, ignore

NUM_IMAGES = 14
NUM_CALIBRATED = 128  # images of train by which numbers of 8 bits get their ranges


def proof_of(saved: SavedRun, *, is_whole: bool = False, on_event: OnEvent = ignore) -> ProofImages:
    """Return some images of val, or of what split there is, as evaluation sees them; the whole split on request."""
    manifest = saved.manifest()
    name, judged = next((name, there) for name in JUDGED if (there := manifest.split(name)))
    samples = _some(judged, NUM_IMAGES)
    batches = plain_batches(Inputs(saved.recipe, manifest, saved.backbone, None, saved.compute), samples)
    images = torch.cat([images.cpu() for images, _ in batches.epoch()])
    found = ProofImages(images, _files(manifest, samples))
    if not is_whole:
        return found
    on_event(Event.message(f"running the model on all {len(judged)} images of {name}"))
    by_torch = replace(saved, recipe=recipes.update(saved.recipe, {"cache.engine": "torch"}))
    logits, targets = logits_on(by_torch, manifest, judged, batch_size=32)
    whole = WholeSplit(name, _files(manifest, judged), logits, targets)
    calibration = _files(manifest, _some(manifest.split("train"), NUM_CALIBRATED))
    return replace(found, whole=whole, calibration=calibration)


JUDGED: tuple[Split, ...] = ("val", "test", "train")


def _some(samples: Sequence[Sample], num: int) -> Sequence[Sample]:
    """Return `num` samples, spread evenly over all of them."""
    return samples[:: max(1, len(samples) // num)][:num]


def _files(manifest: Manifest, samples: Sequence[Sample]) -> list[Path]:
    return [Path(manifest.root, sample.file) for sample in samples]
