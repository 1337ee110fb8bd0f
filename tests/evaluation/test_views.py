"""Views over which answers are averaged: what is cut, and that a run and its file are shown the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import finetune
from finetune.errors import RecipeError
from finetune.evaluation.forward import over_views
from finetune.exports.client import five_crops
from finetune.exports.described import preprocessing_facts
from finetune.images.stacks import Stack
from finetune.images.transforms import five_crops_view, normalise
from finetune.types import Preprocessing

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}


def image_of(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_five_crops_are_corners_and_middle_of_the_resized_image() -> None:
    own = Preprocessing((56, 56), **STATISTICS, crop_pct=1.0, interpolation="bilinear")
    resized = image_of(100, 80).resize((80, 64), Image.Resampling.BILINEAR)
    corners = [(0, 0), (24, 0), (0, 8), (24, 8), (12, 4)]
    expected = np.concatenate([np.asarray(resized)[top : top + 56, left : left + 56] for left, top in corners])
    assert np.array_equal(five_crops_view(own)(image_of(100, 80)).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    "own",
    [
        Preprocessing((32, 32), **STATISTICS, crop_pct=0.95),
        Preprocessing((33, 33), **STATISTICS, crop_pct=0.8),
        Preprocessing((32, 48), **STATISTICS),
        Preprocessing((32, 32), **STATISTICS, crop_mode="squash"),
    ],
)
@pytest.mark.parametrize("size", [(71, 50), (40, 41), (20, 400)])
def test_a_client_cuts_what_the_model_is_shown(own: Preprocessing, size: tuple[int, int]) -> None:
    image = image_of(*size)
    ours = five_crops_view(own)(image if max(size) < 400 else image.crop((0, 40, 20, 360)))  # decoding cuts strips
    facts = preprocessing_facts(own)
    assert np.array_equal(five_crops(image, facts, "uint8"), ours.permute(1, 2, 0).numpy())
    assert np.allclose(five_crops(image, facts), normalise(ours[None], own)[0].numpy(), atol=1e-5)


def test_a_stack_is_cut_channel_by_channel() -> None:
    own = Preprocessing((32, 32), (0.1, 0.2), (0.3, 0.4), channels=2, depth="full")
    rng = np.random.default_rng(0)
    stack = Stack(tuple(Image.fromarray(rng.random((50, 40), dtype=np.float32) * 255) for _ in range(2)))
    ours = normalise(five_crops_view(own)(stack)[None], own)[0]
    assert ours.shape == (2, 5 * 32, 32)
    assert np.allclose(five_crops(stack, preprocessing_facts(own)), ours.numpy(), atol=1e-5)


def test_the_answer_is_the_mean_over_the_crops() -> None:
    class Brightest(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.amax(dim=(1, 2, 3))[:, None]

    images = torch.arange(2 * 3 * 20 * 4, dtype=torch.float32).view(2, 3, 20, 4)
    parts = v2.functional.five_crop(images, [20, 4])  # the same shape: five of the whole
    assert len(parts) == 5
    assert over_views(Brightest(), "5crop")(images)[0, 0] == np.mean([16 * n + 15 + 160 for n in range(5)])
    assert torch.equal(over_views(Brightest(), "none")(images), Brightest()(images))


def test_a_run_and_its_file_are_measured_over_the_same_crops(exported: Path, drawn: Path) -> None:
    ours = finetune.evaluate(exported, split="val", tta="5crop", device="cpu")
    plain = finetune.evaluate(exported, split="val", device="cpu")
    theirs = finetune.evaluate(exported / "exports", split="val", tta="5crop")
    assert ours.tta == "5crop" and ours.metrics["nll"].value != plain.metrics["nll"].value
    assert theirs.metrics["nll"].value == pytest.approx(ours.metrics["nll"].value, abs=1e-4)
    images = sorted(drawn.rglob("*.jpg"))[:5]
    by_run, by_file = (
        finetune.load(place).predict(images, tta="5crop").probabilities for place in (exported, exported / "exports")
    )
    assert np.allclose(by_run, by_file, atol=1e-4)


def test_what_cannot_be_cut_is_refused(tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(epochs=1).folder
    done = finetune.export(run, out=tmp_path / "full.onnx", preprocessing="full")
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(RecipeError, match="resizes and cuts images itself"):
        finetune.load(done.path).predict(image, tta="5crop")
    border = tiny_run(out="border", epochs=1, overrides={"data.fit": "pad"}).folder
    finetune.export(border)
    for place in (border, border / "exports"):
        with pytest.raises(RecipeError, match="whole images on a border"):
            finetune.evaluate(place, tta="5crop")
        with pytest.raises(RecipeError, match="whole images on a border"):
            finetune.load(place).predict(image, tta="5crop")
