"""A program that knows only an ONNX file's metadata sees what evaluation sees, to the level."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from finetune.exports import client
from finetune.exports.client import input_of
from finetune.exports.described import preprocessing_facts
from finetune.images.decode import read_rgb
from finetune.images.decoding import decoding_steps
from finetune.images.levels import Span, range_of
from finetune.images.transforms import normalise, plain_view
from finetune.types import Preprocessing
from tests.corpus import USED, corpus, noise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def preprocessing(**changes: object) -> Preprocessing:
    return Preprocessing(**({"image_size": (32, 32), "mean": MEAN, "std": STD} | changes))


def differences(file: Path, settings: Preprocessing) -> float:
    """Return how far, in levels, a client's input lies from ours."""
    ours = normalise(plain_view(settings)(read_rgb(file, value_range=settings.value_range))[None], settings)[0].numpy()
    theirs = input_of(file, json.loads(json.dumps(preprocessing_facts(settings))))
    return float((np.abs(ours - theirs) * np.array(STD).reshape(3, 1, 1)).max() * 255)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("image_size", [(32, 32), (24, 40)])
def test_a_client_cuts_the_same_pixels(tmp_path: Path, crop_mode: str, image_size: tuple[int, int]) -> None:
    sizes = random.Random(0)
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for file in files:
        noise(sizes.randint(5, 150), sizes.randint(5, 150), seed=int(file.stem)).save(file)
    for crop_pct, interpolation in product([0.875, 1.0, 0.5, 1.2], ["bicubic", "bilinear"]):
        settings = preprocessing(
            crop_mode=crop_mode, image_size=image_size, crop_pct=crop_pct, interpolation=interpolation
        )
        found = [(file.name, differences(file, settings)) for file in files]
        assert [each for each in found if each[1] >= 0.01] == [], (crop_pct, interpolation)


@pytest.mark.parametrize("value_range", [(0.0, 65535.0), None])
def test_a_client_decodes_odd_files_the_same(tmp_path: Path, value_range: tuple[float, float] | None) -> None:
    wrong = {}
    for odd in corpus():
        if odd.verdict is USED:
            odd.write(tmp_path / odd.name)
            found = differences(tmp_path / odd.name, preprocessing(value_range=value_range))
            wrong |= {odd.name: found} if found > 0.01 else {}
    assert wrong == {}


@pytest.mark.parametrize("numbers", [
    np.array([0.0, 0.6], np.float32), np.array([0.0, 200.0]), np.array([0.0, 7.0]), np.array([-3.0, 5.0]),
    np.array([np.nan, 0.5, np.inf]), np.array([3, 70_000]), np.array([5, 4000], np.uint16), np.array([-4, 9], np.int16),
    np.array([0.0, 0.0]), np.array([np.nan]),
])  # fmt: skip
def test_a_client_takes_the_same_numbers_for_black_and_white(numbers: np.ndarray) -> None:
    finite = numbers[np.isfinite(numbers)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    assert client._own_range(numbers) == range_of(Span(*ends, numbers.dtype.kind == "f"))


def test_what_other_programs_must_do_with_deep_numbers_is_said() -> None:
    assert "round(255 * (x - 0) / (4095 - 0))" in " ".join(decoding_steps(preprocessing(value_range=(0.0, 4095.0))))
    assert "The images trained on had 8 bits." in " ".join(decoding_steps(preprocessing()))
