"""What is said of images deeper than 8 bits, among data and before a model that was trained on other depths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.checks import scan
from finetune.images.depths import before_model, in_data
from finetune.images.levels import Range, Span, unfit
from finetune.tasks import Target
from finetune.types import Manifest, Sample

BITS12: Range = (0.0, 4095.0)


def said(*spans: Span | None, value_range: Range | None = BITS12) -> str:
    return " | ".join(before_model(spans, value_range))


def test_images_as_the_model_knows_them_cost_no_word() -> None:
    assert said(None, None, value_range=None) == ""


@pytest.mark.parametrize(("count", "has"), [(1, "1 image has"), (2, "2 images have")])
def test_deep_images_before_a_model_of_8_bits_are_said_to_be_scaled_by_themselves(count: int, has: str) -> None:
    text = said(None, *[Span(0, 4000)] * count, value_range=None)
    assert f"{has} numbers of more than 8 bits, and the model was trained on images of 8 bits" in text
    assert "each is scaled by its own numbers" in text


@pytest.mark.parametrize(("count", "has"), [(1, "1 image has"), (2, "2 images have")])
def test_images_of_8_bits_before_a_model_of_more_are_said_to_be_taken_as_they_are(count: int, has: str) -> None:
    text = said(*[None] * count, Span(0, 4000))
    assert f"{has} 8 bits, and the model was trained with 4095 for white: taken as" in text
    assert "0 is black and 4095 white, as the model was trained" in text


def test_numbers_beyond_the_range_of_the_model_or_far_below_it_are_told() -> None:
    text = said(Span(0, 65535), Span(0, 4000))
    assert "1 image goes beyond 0 to 4095 (as far as 0 to 65535)" in text
    assert "2 images go beyond" in said(Span(-5, 100), Span(0, 4096))
    assert "no number of these images is above 300, and 4095 is white" in said(Span(0, 300), Span(0, 20))
    assert "nearly black" not in said(Span(0, 300), Span(0, 4000))
    assert "beyond" not in said(Span(0, 4000))


def test_data_says_how_many_of_its_images_have_8_bits_beside_deeper_ones() -> None:
    (text,) = in_data([Span(0, 4000), None, None], BITS12)
    assert text.endswith(
        "0 is taken for black and 4095 for white (data.value_range), with 8 bits between; data.depth = 'full' keeps"
        " all; the other 2 have 8 bits, white is 255"
    )
    assert list(in_data([None], None)) == []
    assert any("goes beyond 0 to 255" in text for text in in_data([Span(0, 4000)], (0.0, 255.0)))


def test_floats_that_a_range_makes_black_are_named_by_the_scan_and_not_remembered_as_damaged(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.full((8, 8), 0.5 + number / 4, np.float32)).save(tmp_path / f"{number}.tif")
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(tmp_path / "2.png")
    names = ("0.tif", "1.tif", "2.png")
    manifest = Manifest(str(tmp_path), ("a",), tuple(Sample(name, Target(0)) for name in names))
    found = scan(manifest, value_range=BITS12, is_for_model=True)
    assert [problem.file for problem in found.problems] == ["0.tif", "1.tif"]
    assert "it would be black" in found.problems[0].reason
    own = scan(manifest, is_for_model=True)
    assert own.problems == () and own.value_range is None
    assert [problem.file for problem in scan(manifest).problems] == ["2.png"]


def test_floats_that_a_range_makes_white_are_named_too() -> None:
    assert "it would be white" in unfit(Span(1e38, 1e38, True), (0.0, 65535.0))
    assert unfit(Span(0.0, 1e38, True), (0.0, 65535.0)) == ""


def test_of_floats_on_two_scales_those_that_would_be_black_are_named(tmp_path: Path) -> None:
    for number, high in enumerate((1.0, 60000.0, 50000.0)):
        Image.fromarray(np.full((8, 8), high, np.float32)).save(tmp_path / f"{number}.tif")
    manifest = Manifest(str(tmp_path), ("a",), tuple(Sample(f"{n}.tif", Target(0)) for n in range(3)))
    (problem,) = scan(manifest).problems
    assert problem.file == "0.tif" and "white is 65535" in problem.reason
