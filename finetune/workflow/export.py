"""`export`: a run's model in a format that others read, proven equal on real images."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.checkpoint.saved import SavedRun, load_run
from finetune.errors import ExportError, did_you_mean
from finetune.exports.formats import FORMATS, Export, Proof
from finetune.prepare.inputs import Inputs
from finetune.prepare.passes import plain_batches
from finetune.settings import ExportFormat

NUM_PROOF_IMAGES = 14


def export(run: str | Path, *, format: ExportFormat = "onnx", out: str | Path | None = None) -> Export:
    """Export the best model of a finished run, and prove on real val images that it computes the same.

    Raises:
        ExportError: it cannot be exported, or the export differs; no file stays then.
        CheckpointError: no finished run. ResourceError: the place is taken or cannot be written.
    """
    if format not in FORMATS:
        raise ExportError(f"format {format!r} is none of {', '.join(FORMATS)}.{did_you_mean(str(format), FORMATS)}")
    saved, kind = load_run(run, device="cpu"), FORMATS[format]
    return kind.write(saved, Path(out) if out else saved.folder.exports / kind.name, _proof(saved))


def _proof(saved: SavedRun) -> Proof:
    """Return images of val, or of what split there is."""
    manifest = saved.manifest()
    judged = next(found for name in ("val", "test", "train") if (found := manifest.split(name)))
    samples = judged[:: max(1, len(judged) // NUM_PROOF_IMAGES)][:NUM_PROOF_IMAGES]
    batches = plain_batches(Inputs(saved.recipe, manifest, saved.backbone, None, saved.compute), samples)
    images = torch.cat([images.cpu() for images, _ in batches.epoch()])
    return Proof(images, [Path(manifest.root, sample.file) for sample in samples])
