"""Images of another depth than those that a model was trained on: the same for every command, and never unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from tests.support import TINY, warned


def deepened(images: Path, to: Path, *, bits: int) -> Path:
    """Write grey images with so many bits, in class folders."""
    for file in images.rglob("*.jpg"):
        place = to / file.parent.name / f"{file.stem}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            levels = np.asarray(image.convert("L"), dtype=np.float64) / 255
        grey = levels * (2**bits - 1)
        Image.fromarray(grey.round().astype(np.uint8 if bits == 8 else np.uint16)).save(place)
    return to


def told(act: Callable[..., Any], *arguments: object, **more: object) -> tuple[Any, str]:
    found, texts = warned(act, *arguments, **more)
    return found, " | ".join(texts)


@pytest.fixture(scope="module")
def of_12_bits(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of 12 bits."""
    place = tmp_path_factory.mktemp("deep")
    finetune.run(deepened(few, place / "imgs", bits=12), strategy="full", epochs=2, out=place / "run", **TINY)
    return place / "run"


@pytest.fixture(scope="module")
def of_8_bits(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of 8 bits."""
    place = tmp_path_factory.mktemp("shallow") / "run"
    finetune.run(few, strategy="full", epochs=2, out=place, **TINY)
    return place


def test_deep_images_before_a_model_of_8_bits_are_said_and_seen_alike_by_predict_and_eval(
    of_8_bits: Path, few: Path, tmp_path: Path
) -> None:
    images = deepened(few, tmp_path, bits=12)
    one = next(iter(sorted(images.rglob("*.png"))))
    with Image.open(one) as image:  # one that fills 16 bits: a range of the whole set would darken all others
        Image.fromarray(np.asarray(image).astype(np.uint16) * 16).save(one)
    found, text = told(finetune.load(of_8_bits).predict, images)
    assert "24 images have numbers of more than 8 bits, and the model was trained on images of 8 bits" in text
    measured, again = told(finetune.evaluate, of_8_bits, data=images)
    assert text == again
    named = [measured.classes.index(prediction.label) for prediction in found]
    assert [named.count(place) for place in range(6)] == np.sum(measured.confusion, axis=0).tolist()
    shallow, nothing = told(finetune.load(of_8_bits).predict, deepened(few, tmp_path / "8", bits=8))
    assert nothing == "" and [p.label for p in shallow][1:] == [p.label for p in found][1:]


def test_images_of_8_bits_before_a_model_of_12_are_taken_as_they_are_and_that_is_said(
    of_12_bits: Path, few: Path, tmp_path: Path
) -> None:
    classifier = finetune.load(of_12_bits)
    deep, text = told(classifier.predict, of_12_bits.parent / "imgs")
    assert text == "24 images have numbers of more than 8 bits: 0 is black and 4095 white, as the model was trained"
    images = deepened(few, tmp_path / "8", bits=8)
    shallow, text = told(classifier.predict, images)
    assert text == (
        "24 images have 8 bits, and the model was trained with 4095 for white: taken as they are, 255 is white"
    )
    assert [p.label for p in shallow] == [p.label for p in deep]
    assert text == told(finetune.evaluate, of_12_bits, data=images)[1]


def test_images_of_16_bits_before_a_model_of_12_are_said_to_be_clipped(
    of_12_bits: Path, few: Path, tmp_path: Path
) -> None:
    _, text = told(finetune.load(of_12_bits).predict, deepened(few, tmp_path, bits=16))
    assert "24 images go beyond 0 to 4095" in text
    assert "24 images go beyond 0 to 4095" in told(finetune.evaluate, of_12_bits, data=tmp_path)[1]
    _, text = told(finetune.load(of_12_bits).predict, deepened(few, tmp_path / "9", bits=9))
    assert "4095 is white: they are nearly black" in text


def test_what_is_not_seen_of_a_file_is_told_by_predict(of_8_bits: Path, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    _, text = told(finetune.load(of_8_bits).predict, tmp_path)
    assert text.startswith("1 image has several pages or frames; the first is used, e.g. ")
