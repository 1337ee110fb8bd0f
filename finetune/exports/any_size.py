"""The whole preprocessing as ONNX operators: images of any size, resized and cut out as `exports/client.py` does it.

onnxruntime resizes 8 bits with Pillow's own antialiasing, rows first: where Pillow does so too (its versions before 13
always, 13 not for images more than twice as high as wide), the pixels differ by one level at most (docs/export.md).
Letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

import json

import onnx
from onnx import ModelProto, compose, parser

from finetune.errors import ExportError
from finetune.exports.client import INPUT, scale_size
from finetune.types import LONGEST, Preprocessing

MODES = {"bicubic": "cubic", "bilinear": "linear"}

# (H, W) are whole numbers; a double is rounded to the nearest even one, as Python does.
SIZES = {
    "shorter": """
        long = Mul(resize, kept)
        short = ReduceMin<keepdims = 1>(kept)
        sizes = Div(long, short)
    """,
    "share": """
        kept_d = Cast<to = 11>(kept)
        resize_d = Cast<to = 11>(resize)
        ratio = Div(kept_d, resize_d)
        share = Reduce{which}<keepdims = 1>(ratio)
        exact = Div(kept_d, share)
        rounded = Round(exact)
        sizes = Cast<to = 7>(rounded)
    """,
    "squash": """
        sizes = Identity(resize)
    """,
}

GRAPH = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
any_size (uint8[batch, H, W, {bands}] {images}) => (uint8[batch, {height}, {width}, {bands}] cut_out)
<
    int64[{num_to}] resize = {{{to}}}, int64[2] wanted = {{{height}, {width}}}, int64[1] longest = {{{longest}}},
    int64[2] hw = {{1, 2}}, int64[2] places = {{2, 3}}, int64[2] outer_pads = {{0, 0}}, int64[1] two = {{2}},
    double[1] half = {{0.5}}, uint8[1] one = {{1}}, uint8[1, {bands}, 1, 1] fill = {{{fill}}}
>
{{
    size = Shape<start = 1, end = 3>({images})
    shorter = ReduceMin<keepdims = 1>(size)
    most = Mul(shorter, longest)
    kept = Min(size, most)
    over = Sub(size, kept)
    first = Div(over, two)
    last = Add(first, kept)
    middle = Slice({images}, first, last, hw)
    {sizes}
    planes = Transpose<perm = [0, 3, 1, 2]>(middle)
    outer = Shape<start = 0, end = 2>(planes)
    target = Concat<axis = 0>(outer, sizes)
    nothing = Constant<value_floats: floats = []>()
    small = Resize<mode = "{mode}", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1,
        coordinate_transformation_mode = "half_pixel">(planes, nothing, nothing, target)
    extra = Sub(sizes, wanted)
    nought = Sub(wanted, wanted)
    more = Max(extra, nought)
    more_d = Cast<to = 11>(more)
    start_d = Mul(more_d, half)
    start_r = Round(start_d)
    start = Cast<to = 7>(start_r)
    stop = Add(start, wanted)
    part = Slice(small, start, stop, places)
    lack = Neg(extra)
    less = Max(lack, nought)
    before = Div(less, two)
    after = Sub(less, before)
    pads = Concat<axis = 0>(outer_pads, before, outer_pads, after)
    padded = Pad(part, pads)
    part_shape = Shape(part)
    ones = Expand(one, part_shape)
    inside = Pad(ones, pads)
    is_inside = Cast<to = 9>(inside)
    whole = Where(is_inside, padded, fill)
    cut_out = Transpose<perm = [0, 2, 3, 1]>(whole)
}}
"""


def with_whole_preprocessing(model: ModelProto, preprocessing: Preprocessing) -> ModelProto:
    """Return a graph that takes images (B, H, W, C) of any size, of one that takes their middle in 8 bits.

    Raises:
        ExportError: ONNX has no such way to resize.
    """
    if preprocessing.interpolation not in MODES:
        raise ExportError(
            f"ONNX has no operator that resizes by {preprocessing.interpolation}",
            hint="Use --with-preprocessing uint8, with images already resized.",
        )
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    before = parser.parse_model(_graph(preprocessing, opset=opset, ir_version=model.ir_version))
    inner = compose.add_prefix(model, "network/", rename_outputs=False, rename_inputs=False)
    merged: ModelProto = compose.merge_models(before, inner, io_map=[("cut_out", INPUT)])
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(merged, metadata | {"inside": json.dumps("full")})
    return merged


def _graph(own: Preprocessing, *, opset: int, ir_version: int) -> str:
    height, width = own.image_size
    to = scale_size(own.image_size, own.crop_pct)
    if own.crop_mode == "squash":
        sizes = SIZES["squash"]
    elif own.crop_mode == "border":
        sizes = SIZES["share"].format(which="Max")
    elif to[0] != to[1]:
        sizes = SIZES["share"].format(which="Min")
    else:
        sizes, to = SIZES["shorter"], to[:1]
    colour = [round(255 * value) if own.crop_mode == "border" else 0 for value in own.border]
    return GRAPH.format(
        ir_version=ir_version,
        opset=opset,
        bands=own.bands.count,
        images=INPUT,
        height=height,
        width=width,
        longest=LONGEST,
        num_to=len(to),
        to=", ".join(map(str, to)),
        fill=", ".join(map(str, colour)),
        sizes=sizes,
        mode=MODES[own.interpolation],
    )
