"""A model repository for NVIDIA's Triton Inference Server, with an ONNX file in it. Letters: B batch, K classes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from finetune.checkpoint.run_folder import slug
from finetune.exports.client import VERSION
from finetune.exports.exporting import Exporting
from finetune.exports.form import OUTPUT, PROBABILITIES
from finetune.whole import write_text

MOST = 32  # images that the server puts into one batch
TYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.UINT8: "TYPE_UINT8"}
CONFIG = """name: {name}
platform: "onnxruntime_onnx"
max_batch_size: {most}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{ }}
"""
TENSOR = """  {{
    name: {name}
    data_type: {type}
    dims: [ {dims} ]{labels}
  }}"""


def triton_place(root: Path, what: Exporting) -> Path:
    """Return where in a model repository the ONNX file of a run lies: in the first version of its model."""
    return root / slug(what.described.run) / VERSION / "model.onnx"


def write_config(file: Path, labels: str) -> None:
    """Write config.pbtxt for an ONNX file in a model repository, by what goes in and comes out of it.

    The server can name classes by the file `labels`, which lies beside config.pbtxt.
    """
    graph, model = onnx.load(file, load_external_data=False).graph, file.parents[1]
    inputs = [_tensor(value, "") for value in graph.input]
    outputs = [_tensor(value, labels if value.name in (OUTPUT, PROBABILITIES) else "") for value in graph.output]
    text = CONFIG.format(name=json.dumps(model.name), most=MOST, inputs=",\n".join(inputs), outputs=",\n".join(outputs))
    write_text(model / "config.pbtxt", text)


def _tensor(value: onnx.ValueInfoProto, labels: str) -> str:
    of = value.type.tensor_type
    dims = [str(dim.dim_value if dim.HasField("dim_value") else -1) for dim in of.shape.dim][1:]
    line = f"\n    label_filename: {json.dumps(labels)}" if labels else ""
    return TENSOR.format(name=json.dumps(value.name), type=TYPES[of.elem_type], dims=", ".join(dims), labels=line)
