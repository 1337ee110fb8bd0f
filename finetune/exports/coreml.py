"""Core ML's package for Apple's devices, proven by Core ML itself, which macOS alone has.

One image at a time. Letters: C channels, H W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.checkpoint.run_folder import write_json
from finetune.errors import ExportError
from finetune.exports.client import INPUT, input_of
from finetune.exports.described import Described
from finetune.exports.exporting import Exporting
from finetune.exports.form import OUTPUT
from finetune.exports.proof import Logits, Parity, prove
from finetune.exports.silence import without_remarks, without_words
from finetune.exports.torch_formats import FACTS
from finetune.types import OnEvent
from finetune.wording import first_line

PACKAGE = "model.mlpackage"


class CoreMlStranger:
    """A program that has Core ML's package, and what is said of images beside it."""

    def __init__(self, folder: Path) -> None:
        import coremltools

        units = coremltools.ComputeUnit.CPU_ONLY  # the others compute in float16
        self.network = coremltools.models.MLModel(str(folder / PACKAGE), compute_units=units)
        self.preprocessing: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))["preprocessing"]

    def read(self, file: Path) -> NDArray[Any]:
        return input_of(file, self.preprocessing)

    def answer(self, images: Sequence[NDArray[Any]]) -> Logits:
        rows: Logits = np.concatenate([self.network.predict({INPUT: image[None]})[OUTPUT] for image in images])
        return rows


def write_coreml(what: Exporting, folder: Path, on_event: OnEvent) -> Parity:
    """Fill a folder with model.mlpackage, in float16 where the form asks for that.

    Raises:
        ExportError: Core ML cannot take the network.
    """
    is_half = what.form.precision == "fp16"
    convert(what.model, what.described, folder / PACKAGE, is_half=is_half)
    write_json(folder / FACTS, what.described.facts())
    max_loss = what.form.max_loss if is_half else None
    return prove(what.model, CoreMlStranger(folder), what.proof, what.described, max_loss=max_loss, on_event=on_event)


def convert(model: nn.Module, described: Described, path: Path, *, is_half: bool = False) -> None:
    """Write a network as Core ML's package, which takes `images` (1, C, H, W) and gives `logits` (1, K).

    Raises:
        ExportError: Core ML cannot take it.
    """
    with without_remarks(), without_words():
        import coremltools
    own = described.preprocessing
    example = torch.zeros(1, own.channels, *own.image_size)
    precisions = coremltools.precision
    try:
        with without_remarks(), without_words(), torch.no_grad():
            traced: Any = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
            made = coremltools.convert(
                traced,
                inputs=[coremltools.TensorType(INPUT, shape=tuple(example.shape))],
                outputs=[coremltools.TensorType(OUTPUT)],
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=precisions.FLOAT16 if is_half else precisions.FLOAT32,
            )
            made.save(str(path))
    except Exception as error:  # its errors have no tree of their own
        raise ExportError(f"Core ML cannot convert this network: {first_line(error)}") from error
