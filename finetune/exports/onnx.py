"""A model as an ONNX file in the form that is asked for, proven by a program that knows nothing else.

Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.backbone.onnx_graph import EXPORT_ERRORS, write_graph
from finetune.errors import DataError, ExportError
from finetune.exports.any_size import with_whole_preprocessing
from finetune.exports.client import INPUT, Client
from finetune.exports.described import Described
from finetune.exports.form import OUTPUT, PROBABILITIES, OnnxForm
from finetune.exports.outputs import ExportedNetwork
from finetune.exports.precision import WAYS, for_8_bits, in_8_bits, in_float16
from finetune.exports.proof import TOLERANCE, TOLERANCE_OF_PIXELS, Parity, ProofImages, milliseconds, prove
from finetune.types import OnEvent, ignore
from finetune.values import ExportPrecision
from finetune.wording import first_line

PLAIN = OnnxForm()
OUTPUTS_APART = {"fp16": 0.02, "int8": 0.5}


def in_form(model: nn.Module, described: Described, form: OnnxForm) -> ExportedNetwork:
    """Return a network as a file of a form holds it.

    Raises:
        ExportError: it cannot have this form. RecipeError: its task has no such output.
    """
    form.check_for(described.task)
    if form.preprocessing != "none" and described.preprocessing.bands.is_full:
        raise ExportError(
            "this model takes images with all their bits, but a file that prepares images itself takes 8",
            hint="Leave out --with-preprocessing.",
        )
    if form.dynamic_size and any(type(module).__name__.endswith("Same") for module in model.modules()):
        raise ExportError(
            "this network pads by the size of its input (pad_type same), which no exporter leaves free",
            hint="Leave out --dynamic-size: --with-preprocessing full also takes images of any size.",
        )
    own = described.preprocessing
    return ExportedNetwork(model.cpu().float().eval(), form, preprocessing=own, task=described.task).eval()


def write_onnx(model: nn.Module, path: Path, described: Described, form: OnnxForm = PLAIN) -> ExportedNetwork:
    """Write an ONNX file in float32, and return what is in it as torch has it.

    It takes `images` (B, C, H, W) float32, normalised, if the form does not say otherwise, and gives `logits` (B, K)
    and what else the form names; B is free. What they mean stands in the file's metadata, as JSON.

    Raises:
        ExportError: the network cannot be exported in this form.
    """
    network, own = in_form(model, described, form), described.preprocessing
    if network.takes_bytes:
        example = torch.zeros(2, *own.image_size, own.bands.count, dtype=torch.uint8)
    else:
        example = torch.zeros(2, own.channels, *own.image_size)
    facts = described.facts() | ({"inside": "uint8"} if network.takes_bytes else {})
    metadata = {name: json.dumps(fact) for name, fact in facts.items()}
    sides = ((1, 2) if network.takes_bytes else (2, 3)) if form.dynamic_size else ()
    try:
        write_graph(network, example, path, input_name=INPUT, outputs=form.outputs, metadata=metadata, sides=sides)
    except EXPORT_ERRORS as error:
        free = ", with a free height and width" if form.dynamic_size else ""
        raise ExportError(f"this network cannot be exported to ONNX{free}: {first_line(error)}") from error
    return network


def write_in_form(
    model: nn.Module,
    path: Path,
    proof: ProofImages,
    described: Described,
    form: OnnxForm,
    *,
    on_event: OnEvent = ignore,
) -> Parity:
    """Write an ONNX file in a form, at the precision that it names, and return its proof, whatever that says.

    Of the ways to put a network into 8 bits the first is taken that loses at most half of what may be lost, else the
    one that loses least.

    Raises:
        ExportError: the network cannot be exported in this form.
    """
    network = write_onnx(model, path, described, form)
    if list(path.parent.glob(f"{escape(path.name)}.*")):  # weights of 2 GB and more lie in a file of their own
        raise ExportError("this network is too large for one ONNX file", hint="Use --format timm.")
    if form.outputs != PLAIN.outputs or form.dynamic_size:
        _check_outputs(network, path, proof)

    def finish(file: Path) -> None:
        graph = onnx.load(file)
        if form.preprocessing == "full":
            graph = with_whole_preprocessing(graph, described.preprocessing)
        _strip(graph)
        onnx.save(graph, file)

    def proven(file: Path) -> Parity:
        if form.precision != "fp32" and form.outputs != PLAIN.outputs:
            _check_outputs(network, file, proof, form.precision)
        finish(file)
        tolerance = TOLERANCE_OF_PIXELS if form.preprocessing == "full" else TOLERANCE
        max_loss = None if form.precision == "fp32" else form.max_loss
        return prove(model, Client(file), proof, described, max_loss=max_loss, tolerance=tolerance, on_event=on_event)

    if form.precision == "int8":
        with _beside(path, "fp32") as fp32:
            parity = _best_of_8_bits(path, proof, proven, enough=form.max_loss / 2)
            finish(fp32)
            return _beside_fp32(parity, {"export": path, "fp32": fp32}, model, proof)
    if form.precision == "fp16":
        in_float16(path, path)
    return proven(path)


@contextlib.contextmanager
def _beside(path: Path, name: str) -> Iterator[Path]:
    """Yield a copy of a file, which is gone after the block."""
    copy = path.with_name(f"{path.name}.{name}")
    shutil.copyfile(path, copy)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _beside_fp32(parity: Parity, files: dict[str, Path], model: nn.Module, proof: ProofImages) -> Parity:
    """Return the proof of a file in 8 bits, timed in turn with the same file in fp32, whose size it has, too."""
    networks: dict[str, Callable[[], Any]] = {"model": lambda: model(proof.images[:1])}
    for name, file in files.items():
        client = Client(file)
        networks[name] = partial(client.answer, [client.read(proof.files[0])])
    with torch.no_grad():
        return replace(parity, milliseconds=milliseconds(networks), fp32_bytes=files["fp32"].stat().st_size)


def _strip(model: onnx.ModelProto) -> None:
    """Take out of a graph what no program needs: how the exporter came to it, with paths of this machine."""
    graph = model.graph
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _best_of_8_bits(path: Path, proof: ProofImages, proven: Callable[[Path], Parity], *, enough: float) -> Parity:
    """Put an ONNX file into 8 bits by the first way, the quickest first, that loses so few points; return its proof.

    Where none does, by the one that loses least. One that fails is passed over.

    Raises:
        ExportError: all fail; it says why.
    """
    client = Client(path)  # before what is asked of files of any size is put in front of it
    images = [client.read(file) for file in proof.calibration]
    ready, tried, best = (path.with_name(f"{path.name}.{name}") for name in ("ready", "tried", "best"))
    for_8_bits(path, ready)
    parity, failures = None, []
    for way in WAYS:
        try:
            in_8_bits(ready, tried, way, images)
            found = proven(tried)
        except DataError:
            raise
        except Exception as error:  # of onnxruntime, too, where it has no kernel for what the way makes
            failures.append(f"{way.name}: {first_line(error)}")
            continue
        if parity is None or _loss(found) < _loss(parity):
            parity = found
            tried.replace(best)
        if _loss(parity) <= enough:
            break
    if parity is None:
        raise ExportError(
            "this network cannot be quantised to 8 bits: " + "; ".join(failures),
            hint="Export it with --precision fp16 or fp32.",
        )
    best.replace(path)
    ready.unlink()
    return parity


def _loss(parity: Parity) -> float:
    assert parity.whole is not None
    return parity.whole.loss


def _check_outputs(
    network: ExportedNetwork, path: Path, proof: ProofImages, precision: ExportPrecision = "fp32"
) -> None:
    """Check that the outputs of a file are those of its network, where their size is free on larger images, too.

    Less precise logits, and the probabilities made of them, are judged by what they lose.

    Raises:
        ExportError: they are not.
    """
    client, form = Client(path), network.form
    images = torch.from_numpy(np.stack([client.read(file) for file in proof.files[:4]]))
    sizes = {"": images}
    if form.dynamic_size:
        larger = _larger(images, is_bytes=network.takes_bytes)
        sizes[f" of images {tuple(larger.shape)}"] = larger
    for where, batch in sizes.items():
        with torch.no_grad():
            ours = [output.numpy() for output in network(batch)]
        for name, own, theirs in zip(form.outputs, ours, client.run(list(batch.numpy()), form.outputs), strict=True):
            if precision != "fp32" and name in (OUTPUT, PROBABILITIES):
                continue
            if own.shape != theirs.shape:
                raise ExportError(f"the ONNX file's {name}{where} differ from the model's in their shape")
            differ, most = _apart(own, theirs, precision)
            if not differ <= most:
                raise ExportError(
                    f"the ONNX file's {name}{where} differ from the model's by {differ:.2e}, and {most:g} may be"
                )


def _apart(ours: NDArray[Any], theirs: NDArray[Any], precision: ExportPrecision) -> tuple[float, float]:
    """Return how far an output is from the model's, and how far it may be.

    In fp32 the largest difference, as a share of the largest number; in less precise numbers the length of the
    difference, as a share of the length of the output.
    """
    if precision == "fp32":
        largest = max(float(np.abs(ours).max()), TOLERANCE)
        return float(np.abs(ours - theirs).max()) / largest, TOLERANCE
    length = max(float(np.linalg.norm(ours)), TOLERANCE)
    return float(np.linalg.norm(ours - theirs)) / length, OUTPUTS_APART[precision]


def _larger(images: Tensor, *, is_bytes: bool) -> Tensor:
    """Return a batch a half higher and a quarter wider, in whole steps of 32 pixels."""
    planes = images.permute(0, 3, 1, 2).float() if is_bytes else images
    size = (planes.shape[2] * 3 // 64 * 32 or 32, planes.shape[3] * 5 // 128 * 32 or 32)
    other = interpolate(planes, size, mode="bilinear")
    return other.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous() if is_bytes else other
