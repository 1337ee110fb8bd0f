"""ONNX files in less precise numbers: float16, or 8 bits calibrated on images. Letters: B batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from finetune.errors import ExportError
from finetune.exports.client import INPUT
from finetune.exports.form import PROBABILITIES
from finetune.exports.silence import without_remarks
from finetune.wording import first_line

PRODUCTS = ("Conv", "Gemm", "MatMul")  # where the time goes


@dataclass(frozen=True, slots=True)
class Way:
    """One way to put a network into 8 bits: a scale for each channel of the weights or one for all, of what operators.

    None: of all that onnxruntime has in 8 bits. Beside activations from 0 to 255, which are quickest, weights have 7
    bits: else sums overflow on processors without an instruction for them, where a file would give other answers.
    """

    name: str
    per_channel: bool
    operators: tuple[str, ...] | None = None
    is_signed: bool = False  # activations from -128 to 127, beside weights of 8 bits


WAYS = (
    Way("per channel", True),
    Way("per tensor", False),
    Way("per channel, convolutions and matrix products only", True, PRODUCTS),
    Way("per channel, signed", True, is_signed=True),
)


def in_float16(file: Path, to: Path) -> None:
    """Write an ONNX file with weights and arithmetic in float16; what goes in and comes out stays as it is.

    Raises:
        ExportError: it cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with without_remarks():
            onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), to)
    except Exception as error:  # the converter's errors have no tree
        raise ExportError(f"this network cannot be written in float16: {first_line(error)}") from error


def for_8_bits(file: Path, to: Path) -> None:
    """Write an ONNX file with all shapes known and layers joined, as every way into 8 bits starts from.

    Raises:
        ExportError: it cannot be prepared.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with without_remarks():
            quant_pre_process(file, to, skip_symbolic_shape=True)
    except Exception as error:  # the quantiser's errors have no tree
        raise ExportError(f"this network cannot be quantised: {first_line(error)}") from error
    _keep_metadata(file, to)


def in_8_bits(file: Path, to: Path, way: Way, images: Sequence[NDArray[Any]]) -> None:
    """Write an ONNX file in 8 bits, by the ranges that activations have on images, each as the file takes it.

    Source: onnxruntime's static quantisation, QDQ format.

    Raises:
        ExportError: it cannot be quantised.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made = [node.name for node in onnx.load(file).graph.node if PROBABILITIES in node.output]
    try:
        with without_remarks():
            quantize_static(
                file,
                to,
                _Reader(images),
                nodes_to_exclude=made,  # of 8 bits they would be steps of 1/256, many alike, and no sum of 1
                quant_format=QuantFormat.QDQ,
                per_channel=way.per_channel,
                reduce_range=not way.is_signed,
                activation_type=QuantType.QInt8 if way.is_signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=None if way.operators is None else list(way.operators),
            )
    except Exception as error:  # the quantiser's errors have no tree
        raise ExportError(f"this network cannot be quantised: {first_line(error)}") from error
    _keep_metadata(file, to)


def _keep_metadata(file: Path, to: Path) -> None:
    model = onnx.load(to)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in onnx.load(file).metadata_props})
    onnx.save(model, to)


class _Reader:
    """Hands images out one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, images: Sequence[NDArray[Any]]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        image = next(self._left, None)
        return None if image is None else {INPUT: image[None]}
