"""The images that an export is proven on."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.checkpoint.saved import SavedRun
from finetune.exports.formats import Proof
from finetune.prepare.inputs import Inputs
from finetune.prepare.passes import plain_batches

NUM_IMAGES = 14


def proof_of(saved: SavedRun) -> Proof:
    """Return some images of val, or of what split there is, as evaluation sees them."""
    manifest = saved.manifest()
    judged = next(there for name in ("val", "test", "train") if (there := manifest.split(name)))
    samples = judged[:: max(1, len(judged) // NUM_IMAGES)][:NUM_IMAGES]
    batches = plain_batches(Inputs(saved.recipe, manifest, saved.backbone, None, saved.compute), samples)
    images = torch.cat([images.cpu() for images, _ in batches.epoch()])
    return Proof(images, [Path(manifest.root, sample.file) for sample in samples])
