"""OpenVINO's pair of files, made of an ONNX file and proven by its own runtime. Letters: B batch, K classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.checkpoint.run_folder import write_json
from finetune.errors import ExportError
from finetune.exports.client import INPUT, input_of
from finetune.exports.exporting import Exporting
from finetune.exports.form import OUTPUT
from finetune.exports.onnx import write_onnx
from finetune.exports.proof import Logits, Parity, prove
from finetune.exports.torch_formats import FACTS
from finetune.types import OnEvent
from finetune.wording import first_line


class OpenVinoStranger:
    """A program that has OpenVINO's files, and what is said of images beside them."""

    def __init__(self, folder: Path) -> None:
        import openvino

        hint = {"INFERENCE_PRECISION_HINT": "f32"}  # else processors that have bfloat16 compute in it
        self.network = openvino.Core().compile_model(folder / "model.xml", "CPU", hint)
        self.preprocessing: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))["preprocessing"]

    def read(self, file: Path) -> NDArray[Any]:
        return input_of(file, self.preprocessing)

    def answer(self, images: Sequence[NDArray[Any]]) -> Logits:
        logits: Logits = self.network({INPUT: np.stack(images)})[OUTPUT]
        return logits


def write_openvino(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder with model.xml and model.bin, with weights in float16 where the form asks for that.

    Raises:
        ExportError: OpenVINO cannot take the network.
    """
    import openvino

    graph, is_half = folder / "model.onnx", what.form.precision == "fp16"
    write_onnx(what.model, graph, what.described)
    try:
        openvino.save_model(openvino.convert_model(graph), folder / "model.xml", compress_to_fp16=is_half)
    except Exception as error:  # its errors have no tree of their own
        raise ExportError(f"OpenVINO cannot convert this network: {first_line(error)}") from error
    graph.unlink()
    write_json(folder / FACTS, what.described.facts())
    max_loss = what.form.max_loss if is_half else None
    return prove(what.model, OpenVinoStranger(folder), what.proof, what.described, max_loss=max_loss, on_event=on_event)
