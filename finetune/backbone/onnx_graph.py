"""A network as an ONNX graph, made by torch's exporters with their messages silenced."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from finetune.wording import first_line

EXPORT_ERRORS = (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError)
APART = 1e-3  # of the largest value: how far a graph's answers may be from the network's


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
    """Write a network in eval mode for batches of any size of images like `example` (B, ...), with metadata.

    `sides` are the dimensions of height and width where those are free, too. By torch's older exporter, which takes a
    twentieth of the newer one's time, where what it traced from `example` answers another batch alike; else by the
    newer, which comes first where sides are free: a trace keeps what it computed from them.

    Raises:
        One of EXPORT_ERRORS: neither can.
    """
    free = {0: "batch", **dict(zip(sides, ("height", "width"), strict=False))}

    def older() -> None:
        _write_older(model, example, file, outputs, input_name, free)
        _check_another_batch(model, example, file)
        graph = onnx.load(file)
        onnx.helper.set_model_props(graph, dict(metadata))
        onnx.save(graph, file)

    def newer() -> None:
        program = _program(model, example, outputs, input_name, free)
        program.model.metadata_props.update(metadata)
        program.save(str(file))
        _check_another_batch(model, example, file)

    _first_of(*(newer, older) if sides else (older, newer))


def write_quickly(model: nn.Module, example: Tensor, file: Path, *, outputs: Sequence[str]) -> None:
    """Write a network in eval mode for batches of exactly this shape (B, 3, H, W), for comparison with it at once.

    Raises:
        One of EXPORT_ERRORS: the network cannot be exported.
    """
    _first_of(
        lambda: _write_older(model, example, file, outputs, "images", {}),
        lambda: _program(model, example, outputs, "images", {}).save(str(file)),
    )


def _first_of(*ways: Callable[[], None]) -> None:
    """Take the first way that works."""
    *others, last = ways
    for way in others:
        with contextlib.suppress(*EXPORT_ERRORS):
            way()
            return
    last()


def _check_another_batch(model: nn.Module, example: Tensor, file: Path) -> None:
    """Check that a graph does not depend on the number of images that it was made from.

    Raises:
        ValueError: with one image more its output differs from the network's.
    """
    import onnxruntime

    drawn = torch.rand((len(example) + 1, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
    images = drawn if example.is_floating_point() else (255 * drawn).to(example.dtype)
    with torch.no_grad():
        expected = model(images)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    except Exception as error:  # onnxruntime's own have no common name
        raise ValueError(f"onnxruntime cannot run it for another batch: {first_line(error)}") from error
    for ours, theirs in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
        if not np.allclose(ours.numpy(), theirs, rtol=0, atol=APART * float(ours.abs().max())):
            raise ValueError("for another batch the graph and the network differ")


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
    """Return a free dimension; torch finds out by itself which multiples a network takes as sides."""
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
