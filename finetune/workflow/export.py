"""`export`: a run's model in a format that others read, proven equal on real images."""

from __future__ import annotations

from pathlib import Path

from finetune.checkpoint.saved import load_run
from finetune.errors import ExportError, did_you_mean
from finetune.exports.formats import FORMATS, Export
from finetune.prepare.proof import proof_of
from finetune.values import ExportFormat


def export(run: str | Path, *, format: ExportFormat = "onnx", out: str | Path | None = None) -> Export:
    """Export the best model of a finished run, and prove on real val images that it computes the same.

    Raises:
        ExportError: it cannot be exported, or the export differs; no file stays then.
        CheckpointError: no finished run. ResourceError: the place is taken or cannot be written.
    """
    if format not in FORMATS:
        raise ExportError(f"format {format!r} is none of {', '.join(FORMATS)}.{did_you_mean(str(format), FORMATS)}")
    saved, kind = load_run(run, device="cpu"), FORMATS[format]
    return kind.write(saved, Path(out) if out else saved.folder.exports / kind.name, proof_of(saved))
