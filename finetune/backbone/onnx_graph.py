"""A network as an ONNX graph, by torch's own exporter, which is kept quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXPORT_ERRORS = (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError)


def write_quickly(model: nn.Module, example: Tensor, file: Path, *, outputs: Sequence[str]) -> None:
    """Write a network in eval mode for batches of exactly this shape (B, 3, H, W), to be compared with it at once.

    By torch's older exporter, which takes a tenth of the time, where there is one that knows the network.

    Raises:
        One of EXPORT_ERRORS: the network cannot be exported.
    """
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                model, (example,), str(file), input_names=["images"], output_names=list(outputs), dynamo=False
            )
    except EXPORT_ERRORS:
        onnx_graph(model, example, outputs=outputs).save(str(file))


def onnx_graph(
    model: nn.Module,
    example: Tensor,
    *,
    outputs: Sequence[str],
    input_name: str = "images",
    is_batch_free: bool = False,
) -> Any:
    """Return torch's ONNX program of a network in eval mode, of inputs like `example` (B, 3, H, W).

    Raises:
        One of EXPORT_ERRORS: the network cannot be exported.
    """
    shapes = ({0: torch.export.Dim("batch", min=1)},) if is_batch_free else None
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, (example,), input_names=[input_name], output_names=list(outputs), dynamic_shapes=shapes, dynamo=True
        )
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and warnings off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
