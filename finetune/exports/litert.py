"""LiteRT's file (TensorFlow Lite of before), for phones and small devices, proven by its own interpreter.

One image at a time: its converter leaves no batch free. Letters: C channels, H W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.checkpoint.run_folder import write_json
from finetune.errors import ExportError
from finetune.exports.client import INPUT, input_of
from finetune.exports.exporting import Exporting
from finetune.exports.form import OUTPUT
from finetune.exports.proof import Logits, Parity, prove
from finetune.exports.silence import without_remarks, without_words
from finetune.exports.torch_formats import FACTS
from finetune.types import OnEvent
from finetune.wording import first_line


class LiteRtStranger:
    """A program that has the file, LiteRT's interpreter, and what is said of images beside it."""

    def __init__(self, folder: Path) -> None:
        with without_words():
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_path=str(folder / "model.tflite"))
            interpreter.allocate_tensors()
            self.network = interpreter.get_signature_runner()
        self.preprocessing: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))["preprocessing"]

    def read(self, file: Path) -> NDArray[Any]:
        return input_of(file, self.preprocessing)

    def answer(self, images: Sequence[NDArray[Any]]) -> Logits:
        rows: Logits = np.concatenate([self.network(**{INPUT: image[None]})[OUTPUT] for image in images])
        return rows


class _Named(nn.Module):
    """A network whose input and output have the names that all exports give them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: self.model(images)}


def write_litert(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder with model.tflite, in float32.

    Raises:
        ExportError: LiteRT cannot take the network.
    """
    with without_remarks(), without_words():
        import litert_torch
    own = what.described.preprocessing
    example = {INPUT: torch.zeros(1, own.channels, *own.image_size)}
    try:
        with without_remarks(), without_words(), torch.no_grad():
            litert_torch.convert(_Named(what.model).eval(), sample_kwargs=example).export(str(folder / "model.tflite"))
    except Exception as error:  # its errors have no tree of their own
        raise ExportError(f"LiteRT cannot convert this network: {first_line(error)}") from error
    write_json(folder / FACTS, what.described.facts())
    return prove(what.model, LiteRtStranger(folder), what.proof, what.described, on_event=on_event)
