"""A network as an ONNX graph, by torch's own exporter, which is kept quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

EXPORT_ERRORS = (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError)


def write_graph(
    model: nn.Module,
    example: Tensor,
    file: Path,
    *,
    input_name: str,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    sides: Sequence[int] = (),
) -> None:
    """Write a network in eval mode for batches of any size of images like `example`, with metadata.

    `sides` are the dimensions of height and width where those are free, too. By torch's exporter; where its versions
    and onnxscript's do not fit (torch 2.6 and the newest), by the older one.

    Raises:
        One of EXPORT_ERRORS: neither can.
    """
    free = {0: "batch", **dict(zip(sides, ("height", "width"), strict=False))}
    try:
        program = _program(model, example, outputs, input_name, free)
    except EXPORT_ERRORS as error:
        try:
            _write_older(model, example, file, outputs, input_name, free)
        except EXPORT_ERRORS:
            raise error from None
        graph = onnx.load(file)
        onnx.helper.set_model_props(graph, dict(metadata))
        onnx.save(graph, file)
        return
    program.model.metadata_props.update(metadata)
    program.save(str(file))


def write_quickly(model: nn.Module, example: Tensor, file: Path, *, outputs: Sequence[str]) -> None:
    """Write a network in eval mode for batches of exactly this shape (B, 3, H, W), to be compared with it at once.

    By torch's older exporter, which takes a tenth of the time, where there is one that knows the network.

    Raises:
        One of EXPORT_ERRORS: the network cannot be exported.
    """
    try:
        _write_older(model, example, file, outputs, "images", {})
    except EXPORT_ERRORS:
        _program(model, example, outputs, "images", {}).save(str(file))


def _program(
    model: nn.Module, example: Tensor, outputs: Sequence[str], input_name: str, free: Mapping[int, str]
) -> Any:
    shapes = ({dim: _dimension(name) for dim, name in free.items()},) if free else None
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, (example,), input_names=[input_name], output_names=list(outputs), dynamic_shapes=shapes, dynamo=True
        )
    assert program is not None
    return program


def _write_older(
    model: nn.Module, example: Tensor, file: Path, outputs: Sequence[str], input_name: str, free: Mapping[int, str]
) -> None:
    names = [input_name, *outputs]
    axes = {name: dict(free) if name == input_name else {0: "batch"} for name in names} if free else None
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            model, (example,), str(file), input_names=names[:1], output_names=names[1:], dynamic_axes=axes, dynamo=False
        )


def _dimension(name: str) -> Any:
    """Return a free dimension; of sides torch finds out by itself what multiples a network takes."""
    return torch.export.Dim("batch", min=1) if name == "batch" else torch.export.Dim.DYNAMIC


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
