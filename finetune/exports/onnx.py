"""A model as an ONNX file in the form that is asked for, proven by a program that knows nothing else.

Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from glob import escape
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.backbone.onnx_graph import EXPORT_ERRORS, write_graph
from finetune.backbone.weights import first_line
from finetune.errors import ExportError
from finetune.exports.any_size import with_whole_preprocessing
from finetune.exports.client import INPUT, Client
from finetune.exports.described import Described
from finetune.exports.form import OnnxForm
from finetune.exports.outputs import ExportedNetwork
from finetune.exports.precision import WAYS, in_8_bits, in_float16
from finetune.exports.proof import TOLERANCE, TOLERANCE_OF_PIXELS, Parity, ProofImages, prove
from finetune.types import OnEvent, ignore

PLAIN = OnnxForm()


def write_onnx(model: nn.Module, path: Path, described: Described, form: OnnxForm = PLAIN) -> ExportedNetwork:
    """Write an ONNX file in float32, and return what is in it as torch has it.

    It takes `images` (B, C, H, W) float32, normalised, if the form does not say otherwise, and gives `logits` (B, K)
    and what else the form names; B is free. What they mean stands in the file's metadata, as JSON.

    Raises:
        ExportError: the network cannot be exported in this form.
    """
    form.check_for(described.task)
    if form.preprocessing != "none" and described.preprocessing.bands.is_full:
        raise ExportError(
            "this model takes images with all of their bits, and 8 of them go into a file that prepares images itself",
            hint="Leave --with-preprocessing away.",
        )
    if form.dynamic_size and any(type(module).__name__.endswith("Same") for module in model.modules()):
        raise ExportError(
            "this network pads by the size of what it sees (pad_type same), which no exporter leaves free",
            hint="Leave --dynamic-size away: --with-preprocessing full takes images of any size, too.",
        )
    model, own = model.cpu().float().eval(), described.preprocessing
    network = ExportedNetwork(model, form, preprocessing=own, task=described.task).eval()
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

    def proven(file: Path) -> Parity:
        graph, tolerance = onnx.load(file), TOLERANCE
        if form.preprocessing == "full":
            graph, tolerance = with_whole_preprocessing(graph, described.preprocessing), TOLERANCE_OF_PIXELS
        _strip(graph)
        onnx.save(graph, file)
        max_loss = None if form.precision == "fp32" else form.max_loss
        return prove(model, Client(file), proof, described, max_loss=max_loss, tolerance=tolerance, on_event=on_event)

    if form.precision == "fp16":
        in_float16(path, path)
    elif form.precision == "int8":
        return _best_of_8_bits(path, proof, proven, enough=form.max_loss / 2)
    return proven(path)


def _strip(model: onnx.ModelProto) -> None:
    """Take out of a graph what no program needs: how the exporter came to it, with paths of this machine."""
    graph = model.graph
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _best_of_8_bits(path: Path, proof: ProofImages, proven: Callable[[Path], Parity], *, enough: float) -> Parity:
    """Put an ONNX file into 8 bits by the first way, the quickest first, that loses so few points; return its proof.

    Where none does, by the one that loses least.
    """
    client = Client(path)  # before what is asked of files of any size is put in front of it
    images = [client.read(file) for file in proof.calibration]
    tried, best = (path.with_name(f"{path.name}.{name}") for name in ("tried", "best"))
    parity: Parity | None = None
    for way in WAYS:
        in_8_bits(path, tried, way, images)
        found = proven(tried)
        if parity is None or _loss(found) < _loss(parity):
            parity = found
            tried.replace(best)
        if _loss(parity) <= enough:
            break
    best.replace(path)
    assert parity is not None
    return parity


def _loss(parity: Parity) -> float:
    assert parity.whole is not None
    return parity.whole.loss


def _check_outputs(network: ExportedNetwork, path: Path, proof: ProofImages) -> None:
    """See that all outputs of a file are those of its network, where their size is free on larger images, too.

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
            most = TOLERANCE * max(float(np.abs(own).max()), TOLERANCE)
            if own.shape != theirs.shape or not (difference := float(np.abs(own - theirs).max())) <= most:
                differ = f"by up to {difference:.2e}" if own.shape == theirs.shape else "in their shape"
                raise ExportError(f"the ONNX file's {name}{where} differ from the model's {differ}")


def _larger(images: Tensor, *, is_bytes: bool) -> Tensor:
    """Return a batch a half higher and a quarter wider, in whole steps of 32 pixels."""
    planes = images.permute(0, 3, 1, 2).float() if is_bytes else images
    size = (planes.shape[2] * 3 // 64 * 32 or 32, planes.shape[3] * 5 // 128 * 32 or 32)
    other = interpolate(planes, size, mode="bilinear")
    return other.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous() if is_bytes else other
