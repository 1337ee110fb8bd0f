"""Images of other than three channels, end to end: trained, cached, resumed, judged, asked, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune import recipe as recipes
from finetune.errors import BackboneError, ExportError, RecipeError
from finetune.images.decode import read_rgb
from finetune.images.transforms import normalise, plain_view
from finetune.types import Preprocessing
from finetune.workflow.predict import predict_with
from tests.support import QUICK, assert_same, stop_after

GREY = {"data.channels": 1}
SMALL: dict[str, Any] = {**QUICK, "image_size": 32, "backbone": "test_resnet"}


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey and coloured images of two classes, dark and bright."""
    root, rng = tmp_path_factory.mktemp("greys") / "imgs", np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (root / name).mkdir(parents=True)
        for number in range(14):
            shape = (40, 44) if number % 2 else (40, 44, 3)
            pixels = (level + rng.integers(-50, 50, shape)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("strategy", ["head-only", "full"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_run_of_one_channel_is_judged_asked_and_exported_alike(
    greys: Path, tmp_path: Path, strategy: str, backbone: str
) -> None:
    asked = {**SMALL, "strategy": strategy, "epochs": 3, "backbone": backbone}
    run = finetune.run(greys, out=tmp_path / "run", overrides=GREY, **asked)
    model = finetune.load(run.folder, device="cpu").model
    assert next(iter(model.parameters())).numel() and model.num_channels == 1
    judged = finetune.evaluate(run.folder, split="val")
    assert judged.metrics["top1"].value == run.metrics["val"]["top1"]["value"]
    assert finetune.export(run.folder).parity["is_proven"] is True
    files = sorted((greys / "dark").glob("*.png"))
    answers = [list(predict_with(run.folder, files, device="cpu", engine=by)) for by in ("torch", "onnxruntime")]
    assert [one.label for one in answers[0]] == [one.label for one in answers[1]]
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["model_args"]["in_chans"] == 1 and config["pretrained_cfg"]["input_size"] == [1, 32, 32]
    assert "brightness" in config["decoding"][-1]
    with pytest.raises(ExportError, match="brightness"):
        finetune.export(run.folder, format="timm")


def test_one_channel_is_cached_and_resumed_to_the_same_bits(greys: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "strategy": "top-k", "epochs": 2}
    plain = {**GREY, "augment.level": "none", "cache.engine": "torch"}
    ways = {
        name: finetune.run(greys, out=tmp_path / name, overrides={**plain, **more}, **asked).folder
        for name, more in (("cached", {}), ("uncached", {"cache.features": "none", "cache.pixels": "none"}))
    }
    assert_same(ways["cached"], ways["uncached"])
    with pytest.raises(finetune.Interrupted):
        overrides = {**plain, "train.checkpoint_every": 1e-9}
        finetune.run(greys, out=tmp_path / "stopped", overrides=overrides, on_event=stop_after(1), **asked)
    assert_same(ways["cached"], finetune.resume(tmp_path / "stopped").folder)


def test_the_network_sees_the_brightness_of_colours_and_grey_as_it_is() -> None:
    rng = np.random.default_rng(0)
    own = Preprocessing((24, 24), (0.4,), (0.2,), channels=1)
    for pixels in (rng.integers(0, 256, (24, 24, 3), np.uint8), np.full((24, 24, 3), 137, np.uint8)):
        image = Image.fromarray(pixels)
        found = normalise(plain_view(Preprocessing((24, 24), (0,), (1,), crop_pct=1.0, channels=1))(image)[None], own)
        expected = np.asarray(image.convert("L"), np.float64) / 255
        assert found.shape == (1, 1, 24, 24)
        assert np.abs(found[0, 0].numpy() * 0.2 + 0.4 - expected).max() <= 0.6 / 255  # Pillow rounds to levels


def test_statistics_of_one_channel_are_one_number_each(greys: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "strategy": "head-only", "epochs": 1}
    run = finetune.run(greys, out=tmp_path / "run", overrides={**GREY, "data.statistics": "data"}, **asked)
    mean, deviation = recipes.load(run.folder / "recipe.toml").data.statistics
    levels = np.concatenate([np.asarray(read_rgb(f).convert("L"), float).ravel() for f in greys.rglob("*.png")]) / 255
    assert len(mean) == len(deviation) == 1 and abs(mean[0] - levels.mean()) < 0.1
    with pytest.raises(RecipeError, match="3 numbers for 1 channel"):
        finetune.run(greys, out=tmp_path / "other", **asked,
                     overrides={**GREY, "data.statistics": [[0.5] * 3, [0.2] * 3]})  # fmt: skip


def test_a_model_of_one_channel_is_gone_on_with_as_one(greys: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "epochs": 1, "strategy": "full", "pretrained": True}
    first = finetune.run(greys, out=tmp_path / "first", overrides=GREY, **{**asked, "pretrained": False})
    asked = {name: value for name, value in asked.items() if name != "backbone"}
    with pytest.raises(BackboneError, match="in_chans = 1: images have 3 channels here"):
        finetune.run(greys, out=tmp_path / "no", weights=first.folder, **asked)
    again = finetune.run(greys, out=tmp_path / "again", weights=first.folder, overrides=GREY, **asked)
    assert finetune.load(again.folder, device="cpu").model.num_channels == 1


def test_a_plan_and_a_ranking_of_one_channel_say_so(greys: Path) -> None:
    planned = finetune.plan(greys, strategy="full", backbone="test_resnet", pretrained=False, overrides=GREY)
    assert any("data.channels = 1" in note for note in planned.notes)
    colours = finetune.plan(greys, strategy="full", backbone="test_resnet", pretrained=False)
    assert planned.num_parameters < colours.num_parameters
    ranked = finetune.rank(greys, ["test_resnet"], device="cpu", image_size=32,
                           overrides={**GREY, "backbone.pretrained": False})  # fmt: skip
    assert ranked.ranking.recommended == "test_resnet"
    assert torch.isfinite(torch.tensor(ranked.ranking.candidates[0].logme))
