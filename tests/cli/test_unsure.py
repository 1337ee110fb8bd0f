"""Pictures that a classifier had better not be asked of: told by the command and in Python, or refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune


@pytest.fixture(scope="module")
def knowing(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the drawn shapes with enough val to know what is usual, on the weights that come along."""
    place = tmp_path_factory.mktemp("knowing") / "run"
    finetune.run(
        drawn, strategy="head-only", backbone="embedded", val=0.4, image_size=64, workers=0, device="cpu", out=place
    )
    return place


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of nothing that the run knows: noise in colour."""
    folder = tmp_path_factory.mktemp("planted")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise-{number}.png")
    return folder


def test_pictures_of_another_kind_are_told_and_those_of_val_are_not(knowing: Path, drawn: Path, planted: Path) -> None:
    classifier = finetune.load(knowing)
    assert all(found.unsure == "unlike what was trained on" for found in classifier.predict(planted, coverage=0.95))
    assert not any(found.unsure for found in classifier.predict(planted))  # not asked for
    rows = csv.DictReader((knowing / "split.csv").open())
    val = [drawn / row["file"] for row in rows if row["split"] == "val"]
    answered = [not found.unsure for found in classifier.predict(val, coverage=0.9)]
    assert len(val) >= 20 and sum(answered) >= 0.9 * len(val)


def test_the_command_tells_them_in_every_form(finetune_cli, knowing: Path, drawn: Path, planted: Path) -> None:
    one, other = str(next(planted.iterdir())), str(next(drawn.rglob("*.jpg")))
    shown = finetune_cli("predict", knowing, one, other, "--unsure")
    assert "unsure, unlike what was trained on: " in " ".join(shown.out.split())
    table = finetune_cli("predict", knowing, one, other, "--csv", "--unsure").out
    first, second, *_ = csv.DictReader(io.StringIO(table))
    assert first["unsure"] == "unlike what was trained on" and first["class1"]
    assert second["problem"] == ""
    assert "unsure" not in finetune_cli("predict", knowing, one, "--csv").out
    answers = json.loads(finetune_cli("predict", knowing, one, "--json", "--coverage", "0.5").out)
    assert answers[0]["unsure"] == "unlike what was trained on"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--coverage", "0"), "coverage = 0 is not a share"),
        (("--coverage", "1.5"), "coverage = 1.5 is not a share"),
        (("--unsure", "--engine", "onnxruntime"), "--engine torch"),
    ],
)
def test_what_cannot_be_told_is_refused(
    finetune_cli, knowing: Path, planted: Path, words: tuple[str, ...], told: str
) -> None:
    shown = finetune_cli("predict", knowing, planted, *words)
    assert shown.code == 2 and told in " ".join(shown.err.split())


def test_a_run_that_cannot_tell_says_why(finetune_cli, finished: Path, planted: Path) -> None:
    shown = finetune_cli("predict", finished, planted, "--unsure")
    assert shown.code != 0
    assert "20 independent images" in " ".join(shown.err.split())


def test_damaged_knowledge_is_named(knowing: Path, planted: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(knowing, tmp_path / "copy")
    (copy / "known.safetensors").write_bytes(b"no tensors")
    with pytest.raises(finetune.CheckpointError, match=r"known\.safetensors cannot be read"):
        finetune.load(copy).predict(planted, coverage=0.9)


def test_of_several_classes_or_a_number_nearness_alone_tells(drawn: Path, planted: Path, tmp_path: Path) -> None:
    lines = [f"{path},{len(path.parent.name)}" for path in sorted(drawn.rglob("*.jpg"))]
    table = tmp_path / "numbers.csv"
    table.write_text("\n".join(["image,label", *lines]))
    common = {"backbone": "embedded", "val": 0.4, "image_size": 64, "workers": 0, "device": "cpu"}
    result = finetune.run(
        table, strategy="linear-probe", out=tmp_path / "run", overrides={"data.task": "regress"}, **common
    )
    found = finetune.load(result.folder).predict(planted, coverage=0.95)
    assert all(one.unsure == "unlike what was trained on" for one in found)
