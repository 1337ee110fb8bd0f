"""`export`: a run's model in a format that others read, proven equal on real images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from finetune.arguments import typed
from finetune.checkpoint.run_folder import open_finished
from finetune.checkpoint.saved import load_run
from finetune.errors import ExportError, RecipeError, did_you_mean
from finetune.exports.exporting import Export
from finetune.exports.form import OnnxForm
from finetune.exports.formats import FORMATS, check_form, check_library, check_model, export_model, free_place
from finetune.exports.hub import check_repository, push
from finetune.prepare.proof import proof_of
from finetune.train.guard import OF_A_MODEL, guarded
from finetune.types import Event, OnEvent, ignore
from finetune.values import ExportFormat, ExportLayout, ExportPrecision, InsideGraph


@guarded(OF_A_MODEL, is_shared=True)
@typed
def export(
    run: str | Path,
    *,
    format: ExportFormat = "onnx",
    out: str | Path | None = None,
    preprocessing: InsideGraph = "none",
    softmax: bool = False,
    features: bool = False,
    saliency: bool = False,
    precision: ExportPrecision = "fp32",
    max_loss: float = 1.0,
    force: bool = False,
    dynamic_size: bool = False,
    layout: ExportLayout = "file",
    data_licence: str = "",
    push_to_hub: str | None = None,
    on_event: OnEvent = ignore,
) -> Export:
    """Export the best model of a finished run, and prove from image files that it computes the same.

    An ONNX file takes prepared images (B, C, H, W) of float32; with the `preprocessing` "uint8" resized and cropped
    ones (B, H, W, C) of uint8, with "full" those of any size. Besides `logits` (B, K) it can give `probabilities`
    (`softmax`), `features` (B, D), which reach the head, and `saliency` (B, K, h, w), how much each place speaks for
    each class. A `precision` below fp32 may cost `max_loss` points of the task's first metric on val; int8 of more than
    0.35 of the size of fp32, or no quicker on this machine, is kept only with `force`. With `dynamic_size` height and
    width are free. The `layout` "triton" writes a model repository for NVIDIA's server. `data_licence` is what the
    model card says about the images; `push_to_hub` names the repository to which timm's folder is uploaded.

    Raises:
        ExportError: it cannot be exported, or the export differs or loses too much; no file stays then.
        CheckpointError: no finished run. ResourceError: the place is taken or cannot be written.
        RecipeError: options that exclude each other.
    """
    if format not in FORMATS:
        raise ExportError(f"format {format!r} is not one of {', '.join(FORMATS)}.{did_you_mean(str(format), FORMATS)}")
    form = OnnxForm(preprocessing, softmax, features, saliency, precision, dynamic_size, max_loss, force)
    check_form(format, form)
    check_library(format)
    if layout not in get_args(ExportLayout) or (layout != "file" and format != "onnx"):
        raise RecipeError(
            f"layout = {layout!r} has no meaning for format {format}", hint="Use onnx with file or triton."
        )
    if push_to_hub is not None:
        if format != "timm":
            raise RecipeError(f"--push-to-hub has no meaning for --format {format}", hint="Use --format timm.")
        check_repository(push_to_hub)
    place = Path(out) if out else None
    free_place(open_finished(run), format, form=form, out=place, layout=layout)  # before all of val is asked
    saved = load_run(run, device="cpu")
    check_model(saved, format, form)
    with saved.compute.in_force():
        proof = proof_of(saved, is_whole=True, on_event=on_event)
        done = export_model(
            saved, format, proof, form=form, out=place, layout=layout, data_licence=data_licence, on_event=on_event
        )  # fmt: skip
    if push_to_hub is None:
        return done
    on_event(Event.message(f"uploading {done.path} to {push_to_hub}"))
    return replace(done, address=push(done.path, push_to_hub))
