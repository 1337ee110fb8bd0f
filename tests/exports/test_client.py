"""A program that knows only an ONNX file's metadata sees what evaluation sees, to the level."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from finetune.exports.client import input_of
from finetune.exports.described import preprocessing_facts
from finetune.images.decode import read_rgb
from finetune.images.decoding import decoding_steps
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


def test_what_other_programs_must_do_with_deep_numbers_is_said() -> None:
    assert "round(255 * (x - 0) / (4095 - 0))" in " ".join(decoding_steps(preprocessing(value_range=(0.0, 4095.0))))
    assert "The images trained on had 8 bits." in " ".join(decoding_steps(preprocessing()))
