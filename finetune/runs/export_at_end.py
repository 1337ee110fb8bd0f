"""The ONNX export that a finished run leaves by itself, if that takes a small part of its time."""

from __future__ import annotations

from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.saved import load_run
from finetune.errors import ExportError, ResourceError
from finetune.exports.form import OnnxForm
from finetune.exports.formats import export_model
from finetune.prepare.proof import proof_of
from finetune.settings import Recipe
from finetune.types import Event, OnEvent

WORTH = 10.0  # seconds: an export is a small part of a run that takes as long


def export_at_end(folder: RunFolder, recipe: Recipe, *, seconds: float, on_event: OnEvent) -> None:
    """Export the model of a finished run that took some seconds, if its recipe wants it.

    A failed export is reported and is not an error: the run is finished.
    """
    wanted = recipe.export.onnx_at_end
    if not wanted or (wanted == "auto" and seconds < WORTH):
        return
    try:
        saved = load_run(folder.path, device="cpu")
        export = export_model(saved, "onnx", proof_of(saved), form=OnnxForm(), out=None, on_event=on_event)
    except (ExportError, ResourceError) as error:
        on_event(Event.warning(f"no ONNX export: {error.message}"))
    except KeyboardInterrupt:
        on_event(Event.warning("the ONNX export was stopped; the run is finished"))
    else:
        on_event(Event.message(f"exported: {export.path}, proven on {export.proof['num_images']} images"))
