"""The preprocessing inside a graph cuts the pixels that Pillow cuts, to the level."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from finetune.errors import ExportError
from finetune.exports.any_size import _graph, with_whole_preprocessing
from finetune.exports.client import prepared
from finetune.exports.described import preprocessing_facts
from finetune.types import Preprocessing


def graph(own: Preprocessing) -> onnxruntime.InferenceSession:
    model = onnx.parser.parse_model(_graph(own, opset=18, ir_version=10))
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def settings(**changes: object) -> Preprocessing:
    return Preprocessing(**({"image_size": (32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)} | changes))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("image_size", [(32, 32), (24, 40)])
def test_pixels_are_those_of_pillow_to_one_level(crop_mode: str, image_size: tuple[int, int]) -> None:
    numbers, sizes = np.random.default_rng(0), random.Random(0)
    for crop_pct, interpolation in product([0.875, 1.2], ["bicubic", "bilinear"]):
        own = settings(crop_mode=crop_mode, image_size=image_size, crop_pct=crop_pct, interpolation=interpolation)
        session = graph(own)
        for _ in range(12):
            height = sizes.randint(5, 100)  # where images are much higher than wide Pillow 13 resizes columns first
            width = sizes.randint(height, 1800 if height < 20 else 150)
            pixels = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
            ours = prepared(Image.fromarray(pixels), preprocessing_facts(own), "uint8").astype(int)
            (theirs,) = session.run(None, {"images": pixels[None]})[0]
            assert theirs.shape == ours.shape
            assert np.abs(ours - theirs).max() <= 1, (crop_pct, interpolation, height, width)


def test_high_images_differ_by_little() -> None:
    own = settings(crop_mode="squash")
    ramp = np.linspace(0, 255, 300 * 60).reshape(300, 60)
    pixels = np.stack([ramp, ramp.T.reshape(300, 60), 255 - ramp], axis=2).astype(np.uint8)
    ours = prepared(Image.fromarray(pixels), preprocessing_facts(own), "uint8").astype(int)
    assert np.abs(ours - graph(own).run(None, {"images": pixels[None]})[0][0]).mean() < 0.5


def test_four_channels_and_batches() -> None:
    own = settings(mean=(0.5,) * 4, std=(0.2,) * 4, channels=4)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 50, 70, 4), dtype=np.uint8)
    ours = [
        prepared(Image.merge("CMYK", [Image.fromarray(band) for band in np.moveaxis(one, 2, 0)]), facts, "uint8")
        for one in pixels
        for facts in [preprocessing_facts(own)]
    ]
    assert np.abs(np.stack(ours).astype(int) - graph(own).run(None, {"images": pixels})[0]).max() <= 1


def test_a_way_to_resize_that_onnx_lacks_is_refused() -> None:
    with pytest.raises(ExportError, match="no operator that resizes by lanczos"):
        with_whole_preprocessing(onnx.ModelProto(), settings(interpolation="lanczos"))
