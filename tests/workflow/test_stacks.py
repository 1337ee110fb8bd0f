"""Files of six channels, end to end: the class lies in the sixth alone, and there in the lower 8 of 16 bits."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import finetune
from finetune import recipe as recipes
from finetune.errors import DataError, ExportError, RecipeError
from finetune.exports.beside import names_beside
from finetune.workflow.predict import predict_with
from tests.corpus import tiff_of_bands
from tests.support import QUICK, assert_same, stop_after

SIX = {"data.channels": 6}
SMALL: dict[str, Any] = {**QUICK, "image_size": 32, "backbone": "test_resnet"}


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit arrays of two classes: bright or dark by less than 256 of 65,536 steps, in the last channel."""
    root, rng = tmp_path_factory.mktemp("stacks") / "imgs", np.random.default_rng(0)
    for name, level in (("low", 60), ("high", 190)):
        (root / name).mkdir(parents=True)
        for number in range(16):
            array = rng.integers(0, 2**16, (40, 44, 6)).astype(np.uint16)
            array[..., 5] = 0x5A00 + level + rng.integers(-50, 50, (40, 44))
            np.save(root / name / f"{number}.npy", array)
    return root


@pytest.fixture(scope="module")
def run(stacks: Path, tmp_path_factory: pytest.TempPathFactory) -> finetune.RunResult:
    return finetune.run(
        stacks, strategy="full", epochs=6, out=tmp_path_factory.mktemp("run") / "run", overrides=SIX, **SMALL
    )


def test_what_lies_in_the_low_bits_of_the_sixth_channel_is_learned(stacks: Path, run: finetune.RunResult) -> None:
    assert run.metrics["val"]["top1"]["value"] == 1.0
    recipe = recipes.load(run.folder / "recipe.toml")
    mean, deviation = recipe.data.statistics  # of train
    assert len(mean) == len(deviation) == 6 and deviation[5] < 0.002 < 0.1 < deviation[0]
    assert recipe.data.value_range == (0, 65535) and recipe.data.depth == "full"
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [6, 32, 32] and config["depth"] == "full"
    assert next(m for m in finetune.load(run.folder).model.modules() if isinstance(m, torch.nn.Conv2d)).in_channels == 6
    assert finetune.evaluate(run.folder, split="val").metrics["top1"].value == 1.0
    assert finetune.evaluate(run.folder, data=stacks).num_images == 32


def test_eight_bits_would_not_have_been_enough(stacks: Path, tmp_path: Path) -> None:
    for file in stacks.rglob("*.npy"):
        shallow = tmp_path / "imgs" / file.relative_to(stacks)
        shallow.parent.mkdir(parents=True, exist_ok=True)
        np.save(shallow, (np.load(file) >> 8).astype(np.uint8))
    lossy = finetune.run(tmp_path / "imgs", strategy="full", epochs=6, out=tmp_path / "run", overrides=SIX, **SMALL)
    assert lossy.metrics["val"]["top1"]["value"] < 1.0


def test_every_way_to_ask_gives_the_same_answers(stacks: Path, run: finetune.RunResult, tmp_path: Path) -> None:
    exported = finetune.export(run.folder)
    assert exported.proof["is_proven"] is True
    files = sorted(stacks.rglob("*.npy"))
    answers = [list(predict_with(run.folder, files, device="cpu", engine=by)) for by in ("torch", "onnxruntime")]
    labels = [one.label for one in answers[0]]
    assert [one.label for one in answers[1]] == labels == [file.parent.name for file in files]
    arrays = finetune.load(run.folder, device="cpu").predict([np.load(file) for file in files[:3]])
    assert [one.label for one in arrays] == labels[:3]
    alone = asked(exported.path, files)
    assert [(row[0], row[1]) for row in alone] == [(str(f), label) for f, label in zip(files, labels, strict=True)]
    page = exported.path.with_name("README.md").read_text()
    assert "6 channels" in page and "255 * (x - 0) / (65535 - 0)" in page
    with pytest.raises(ExportError, match="takes 6 channels of an image with all bits"):
        finetune.export(run.folder, format="timm", out=tmp_path / "timm")


def asked(model: Path, files: list[Path], *, code: int = 0) -> list[list[str]]:
    """Return the rows of the program beside an export, run by itself."""
    words = [sys.executable, "-I", str(names_beside(model)["predict.py"]), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return list(csv.reader(done.stdout.splitlines(), delimiter="\t"))


def test_the_program_beside_an_export_says_what_to_do_about_other_files(
    run: finetune.RunResult, tmp_path: Path
) -> None:
    exported = finetune.export(run.folder, out=tmp_path / "model.onnx")
    (tmp_path / "six.tif").write_bytes(tiff_of_bands(6))
    np.save(tmp_path / "five.npy", np.zeros((40, 40, 5), np.uint16))
    np.save(tmp_path / "nan.npy", np.full((40, 40, 6), np.nan))
    names = [tmp_path / name for name in ("six.tif", "five.npy", "nan.npy")]
    reasons = [row[3] for row in asked(exported.path, names, code=3)]
    assert "save it as .npy" in reasons[0] or "cannot identify" in reasons[0]
    assert "5 channels, and the model takes 6" in reasons[1] and "finite" in reasons[2]


def test_arrays_and_tensors_are_named_as_their_files_are(stacks: Path, run: finetune.RunResult) -> None:
    files = sorted(stacks.rglob("*.npy"))[:4]
    arrays = [np.load(file) for file in files]
    tensors = [torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) for array in arrays]
    classifier = finetune.load(run.folder, device="cpu")
    by_file, by_array, by_tensor = (
        classifier.predict(images).probabilities for images in (files, np.stack(arrays), tensors)
    )
    assert np.array_equal(by_file, by_array) and np.array_equal(by_file, by_tensor)


def test_bad_files_are_left_out_by_name(stacks: Path, run: finetune.RunResult, tmp_path: Path) -> None:
    for file in [*stacks.rglob("*.npy")]:
        place = tmp_path / "imgs" / file.relative_to(stacks)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    low = tmp_path / "imgs" / "low"
    np.save(low / "five.npy", np.zeros((40, 40, 5), np.uint16))
    np.save(low / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (low / "short.npy").write_bytes((stacks / "low" / "0.npy").read_bytes()[:-3])
    checked = finetune.check(tmp_path / "imgs", overrides=SIX)
    assert (checked.pictures.channels, checked.pictures.num_grey) == (6, 0)
    unread = next(finding for finding in checked.findings if finding.kind == "damaged")
    assert {Path(case.files[0].file).name for case in unread.cases} == {"five.npy", "objects.npy", "short.npy"}
    row = next(iter(predict_with(run.folder, [low / "five.npy"], device="cpu")))
    assert row.problem == "5 channels, where 6 are read: data.channels = 5 takes such images"


def test_data_of_other_channels_says_which_key_takes_them(stacks: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"6 channels, where 3 are read: data.channels = 6 takes such images"):
        finetune.run(stacks, out=tmp_path / "run", strategy="head-only", **SMALL)


def test_stacks_are_cached_and_resumed_to_the_same_bits(stacks: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "strategy": "top-k", "epochs": 2}
    plain = {**SIX, "augment.level": "none", "cache.engine": "torch"}
    ways = {
        name: finetune.run(stacks, out=tmp_path / name, overrides={**plain, **more}, **asked).folder
        for name, more in (("cached", {}), ("uncached", {"cache.features": "none", "cache.pixels": "none"}))
    }
    assert_same(ways["cached"], ways["uncached"])
    varied = {**SIX, "train.checkpoint_every": 1e-9}
    whole = finetune.run(stacks, out=tmp_path / "whole", overrides=varied, **asked).folder
    with pytest.raises(finetune.Interrupted):
        finetune.run(stacks, out=tmp_path / "stopped", overrides=varied, on_event=stop_after(1), **asked)
    assert_same(whole, finetune.resume(tmp_path / "stopped").folder)


@pytest.mark.parametrize("more", [{"augment.level": "heavy"}, {"augment.hue": 0.1}, {"augment.policy": "trivial"}])
def test_what_varies_colours_is_refused_of_stacks(more: dict[str, Any]) -> None:
    for bands in (SIX, {"data.depth": "full"}):
        with pytest.raises(RecipeError, match="of red, green and blue"):
            finetune.plan(backbone="test_resnet", strategy="full", pretrained=False, overrides={**bands, **more})


def test_pretrained_stems_are_repeated_as_timm_does(tmp_path: Path, stacks: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    planned = finetune.run(
        stacks,
        **{**SMALL, "pretrained": True},
        weights=tmp_path / "weights.pth",
        strategy="head-only",
        epochs=1,
        out=tmp_path / "run",
        overrides=SIX,
    )
    found = finetune.load(planned.folder, device="cpu").model.conv1[0].weight
    expected = network.conv1[0].weight.repeat(1, 2, 1, 1) / 2
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_are_pictures_where_a_channel_is_of_8_bits(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 160)):
        (tmp_path / "imgs" / name).mkdir(parents=True)
        for number in range(8):
            array = (level + rng.integers(0, 90, (40, 44, channels))).astype(np.uint8)
            deep = array.astype(np.uint16) * 16 if channels != 4 and number % 2 else array
            np.save(tmp_path / "imgs" / name / f"{number}.npy", deep[..., 0] if channels == 1 else deep)
    keys = {"data.channels": channels, "export.onnx_at_end": True}
    run = finetune.run(tmp_path / "imgs", strategy="head-only", epochs=2, out=tmp_path / "run", overrides=keys, **SMALL)
    files = sorted((tmp_path / "imgs").rglob("*.npy"))
    answers = [list(predict_with(run.folder, files, device="cpu", engine=by)) for by in ("torch", "onnxruntime")]
    labels = [one.label for one in answers[0]]
    assert [one.label for one in answers[1]] == labels
    assert [row[1] for row in asked(run.folder / "exports" / "model.onnx", files)] == labels
