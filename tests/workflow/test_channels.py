"""Images of other than three channels, end to end: trained, cached, resumed, judged, asked, exported."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune import recipe as recipes
from finetune.bands import Bands
from finetune.errors import BackboneError, ExportError, RecipeError
from finetune.exports.client import input_of
from finetune.exports.described import preprocessing_facts
from finetune.images.decode import UndecodableError, read, read_rgb
from finetune.images.transforms import augmented_view, normalise, plain_view
from finetune.prepare.inputs import read_data
from finetune.randomness import forked
from finetune.types import Preprocessing
from finetune.workflow.predict import predict_with
from tests.support import QUICK, assert_same, mostly_slow, stop_after

GREY, FOUR = {"data.channels": 1}, {"data.channels": 4}
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


@pytest.fixture(scope="module")
def fours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four channels, as many kinds of files have them, whose class is told by the fourth alone."""
    root, rng = tmp_path_factory.mktemp("fours") / "imgs", np.random.default_rng(0)
    for name, level in (("low", 60), ("high", 190)):
        (root / name).mkdir(parents=True)
        for number in range(14):
            pixels = rng.integers(0, 256, (40, 44, 4), np.uint8)
            pixels[..., 3] = level + rng.integers(-50, 50, (40, 44))
            written(pixels, list(KINDS)[number % 4], root / name / str(number))
    return root


def written(pixels: np.ndarray, kind: str, place: Path) -> Path:
    """Write four channels as a kind of file, without loss."""
    mode, suffix, more = KINDS[kind]
    file = place.with_suffix(suffix)
    Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(file, **more)
    return file


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("RGBA", ".png", {}),
    "webp": ("RGBA", ".webp", {"lossless": True, "exact": True}),
    "tiff, padded": ("RGBX", ".tif", {}),
    "tiff, cmyk": ("CMYK", ".tiff", {}),
}


CASES = list(product(["head-only", "full"], ["test_resnet", "test_vit"], [1, 4]))
BOTH = (("full", "test_vit", 1), ("head-only", "test_resnet", 4))


@pytest.mark.parametrize(("strategy", "backbone", "channels"), mostly_slow(CASES, *BOTH))
def test_a_run_is_judged_asked_and_exported_alike(
    greys: Path, fours: Path, tmp_path: Path, strategy: str, backbone: str, channels: int
) -> None:
    data, asked = (greys if channels == 1 else fours), {**SMALL, "strategy": strategy, "epochs": 3}
    run = finetune.run(
        data, out=tmp_path / "run", overrides={"data.channels": channels}, **{**asked, "backbone": backbone}
    )
    model = finetune.load(run.folder, device="cpu").model
    assert next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)).in_channels == channels
    judged = finetune.evaluate(run.folder, split="val")
    assert judged.metrics["top1"].value == run.metrics["val"]["top1"]["value"]
    assert finetune.export(run.folder).proof["is_proven"] is True
    elsewhere = finetune.evaluate(run.folder, data=data)
    assert elsewhere.num_images == 28
    files = sorted(file for file in data.rglob("*.*") if file.is_file())
    answers = [list(predict_with(run.folder, files, device="cpu", engine=by)) for by in ("torch", "onnxruntime")]
    assert [one.label for one in answers[0]] == [one.label for one in answers[1]]
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["model_args"]["in_chans"] == channels
    assert config["pretrained_cfg"]["input_size"] == [channels, 32, 32]
    assert ("brightness" if channels == 1 else "four channels") in " ".join(config["decoding"])
    with pytest.raises(ExportError, match=f"takes {channels} channel"):
        finetune.export(run.folder, format="timm")


@pytest.mark.parametrize("channels", [1, 4])
def test_they_are_cached_and_resumed_to_the_same_bits(greys: Path, fours: Path, tmp_path: Path, channels: int) -> None:
    greys = greys if channels == 1 else fours
    asked = {**SMALL, "strategy": "top-k", "epochs": 2}
    plain = {"data.channels": channels, "augment.level": "none", "cache.engine": "torch"}
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


def test_four_channels_are_read_as_they_are_whatever_the_file_calls_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 4), np.uint8)
    pixels[:, :20, 3] = 0  # transparent, where colours would be lost
    for number, kind in enumerate(KINDS):
        image = read(written(pixels, kind, tmp_path / str(number)), bands=Bands(4)).content
        assert np.array_equal(np.asarray(image), pixels), kind
        small = np.asarray(image.resize((25, 15), Image.Resampling.BICUBIC)).astype(int)
        alone = [np.asarray(band.resize((25, 15), Image.Resampling.BICUBIC)).astype(int) for band in image.split()]
        assert np.array_equal(small, np.stack(alone, axis=2)), kind


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_cuts_the_same_four_channels(tmp_path: Path, kind: str, crop_mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (70, 50, 4), np.uint8)
    file = written(pixels, kind, tmp_path / "a")
    own = Preprocessing((32, 32), (0.1, 0.2, 0.3, 0.4), (0.2, 0.3, 0.4, 0.5), crop_mode=crop_mode, channels=4)
    ours = normalise(plain_view(own)(read(file, bands=Bands(4)).content)[None], own)[0].numpy()
    theirs = input_of(file, json.loads(json.dumps(preprocessing_facts(own))))
    assert ours.shape == theirs.shape == (4, 32, 32) and np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize(
    ("mode", "suffix", "reason"),
    [("RGB", ".png", "3 channels"), ("L", ".png", "1 channel ("), ("LA", ".png", "2 channels")],
)
def test_images_of_other_channels_are_left_out_by_name_and_are_there_again_for_three(
    fours: Path, tmp_path: Path, mode: str, suffix: str, reason: str
) -> None:
    shutil.copytree(fours, tmp_path / "imgs")
    Image.new(mode, (40, 40)).save(tmp_path / "imgs" / "low" / f"odd{suffix}")
    for _ in range(2):  # the second time from what is known of the files
        found = read_data(recipes.load(overrides={"data.path": str(tmp_path / "imgs"), **FOUR}))
        assert [(one.file, reason in one.reason) for one in found.problems] == [(f"low/odd{suffix}", True)]
        assert not read_data(recipes.load(overrides={"data.path": str(tmp_path / "imgs")})).problems


def test_four_channels_of_sixteen_bits_are_left_out_with_the_way_out(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2**16, (8, 8, 4), np.uint16).astype(">u2").tobytes()
    lines = b"".join(b"\0" + rows[start : start + 64] for start in range(0, len(rows), 64))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 6, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert read(tmp_path / "deep.png").content.size == (8, 8)
    with pytest.raises(UndecodableError, match="save 8 bits of each"):
        read(tmp_path / "deep.png", bands=Bands(4))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"augment.hue": 0.1}, "of red, green and blue"),
        ({"augment.level": "heavy"}, "of red, green and blue"),
        ({"augment.policy": "augmix"}, "of red, green and blue"),
        ({"data.value_range": [0, 4095]}, "8 bits"),
        ({"data.channels": 65}, "less than or equal to 64"),
        ({"data.channels": 5, "data.depth": 8}, "is for images"),
    ],
)
def test_what_four_channels_have_no_use_for_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        finetune.plan(backbone="test_resnet", strategy="full", pretrained=False, overrides={**FOUR, **more})


def test_pieces_that_know_no_colours_vary_four_channels_alike(fours: Path) -> None:
    own = Preprocessing((32, 32), (0.1, 0.2, 0.3, 0.4), (1.0,) * 4, channels=4)
    augment = recipes.load(overrides={"augment.rotate": 20, "augment.erase": 1.0, "augment.vertical_flip": 0.5}).augment
    plane = np.random.default_rng(0).integers(0, 256, (60, 70), np.uint8)
    image = Image.merge("CMYK", [Image.fromarray(plane)] * 4)
    with forked(3):
        shown = augmented_view(own, augment)(image)
    inside = (shown == shown[:1]).all(dim=0)
    assert shown.shape == (4, 32, 32) and 0.3 < float(inside.float().mean()) < 1
    outside = shown[:, ~inside].T.unique(dim=0)
    assert [round(255 * part) for part in own.mean] in outside.tolist()  # borders have the mean of each channel
