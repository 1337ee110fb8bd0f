"""labels.txt, README.md and predict.py beside an ONNX file: they answer without this tool, and as it does."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.errors import ResourceError
from finetune.exports.beside import program

ALONE = "import runpy, sys; sys.modules.update(finetune=None, torch=None); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"  # noqa: E501


@pytest.fixture(scope="module")
def odd(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One image in many ways to write it."""
    place = tmp_path_factory.mktemp("odd")
    image = Image.open(next(drawn.rglob("*.jpg"))).convert("RGB").resize((90, 61))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    turned = image.getexif()
    turned[0x0112] = 6
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    image.convert("L").save(place / "grey.png")
    image.quantize(17).save(place / "palette.png")
    clear.save(place / "alpha.png")
    clear.quantize(9).save(place / "palette-alpha.png")
    image.save(place / "turned.jpg", exif=turned)
    image.convert("CMYK").save(place / "cmyk.jpg")
    image.convert("1").save(place / "bits.png")
    Image.fromarray(grey * 16).save(place / "twelve.png")
    Image.fromarray(grey * 257).save(place / "sixteen.tif")
    image.resize((400, 20)).save(place / "strip.png")
    Image.fromarray(grey.astype(np.float32) / 257).save(place / "floats.tif")
    Image.fromarray(grey.astype(np.float32) * 2 - 100).save(place / "below.tif")
    Image.fromarray(grey.astype(np.int32) * 1000).save(place / "large.tif")
    return sorted(place.iterdir())


def asked(script: Path, *files: Path) -> tuple[int, list[list[str]]]:
    command = [sys.executable, "-I", "-c", ALONE, str(script), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.stderr, done.stderr
    return done.returncode, list(csv.reader(done.stdout.splitlines(), delimiter="\t"))


def test_the_program_says_what_predict_says_of_files_of_every_kind(
    exported: Path, odd: list[Path], drawn: Path
) -> None:
    files = [*odd, *sorted(drawn.rglob("*.jpg"))[:10]]
    code, rows = asked(exported / "exports" / "predict.py", *files)
    ours = finetune.load(exported).predict(files)
    assert code == 0 and [row[0] for row in rows] == list(map(str, files))
    for row, one in zip(rows, ours, strict=True):
        assert float(row[2]) == pytest.approx(one.probabilities[0], abs=2e-3), row
        assert row[1] == one.label or one.probabilities[0] < 0.3


def test_a_bad_file_is_a_row_and_a_code(exported: Path, tmp_path: Path, odd: list[Path]) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    code, rows = asked(exported / "exports" / "predict.py", tmp_path / "bad.jpg", odd[0])
    assert code == 3 and "cannot be read" in rows[0][3] and rows[1][1]


def test_labels_and_the_page_say_what_the_model_is(exported: Path) -> None:
    place = exported / "exports"
    assert (place / "labels.txt").read_text().splitlines() == list(finetune.load(exported).classes)
    page = (place / "README.md").read_text()
    assert "softmax" in page and "python predict.py IMAGE" in page and "(B, 3, " in page and "image files" in page


def test_elsewhere_they_carry_the_name_of_the_file_and_replace_nothing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a.labels.txt").write_text("mine")
    with pytest.raises(ResourceError, match=r"a\.labels\.txt already exists"):
        finetune.export(exported, out=tmp_path / "a.onnx")
    assert [place.name for place in tmp_path.iterdir()] == ["a.labels.txt"]


@pytest.mark.parametrize(
    ("logits", "facts", "said"),
    [
        ([2.5], {"activation": "none"}, ("2.5", "")),
        ([0.0, 3.0, -3.0], {"activation": "sigmoid", "thresholds": [0.4, 0.9, 0.1]}, ("a|b", "0.500|0.953")),
        ([0.0, -3.0], {"activation": "sigmoid", "thresholds": [0.6, 0.5]}, ("", "")),
        ([0.0, 1.0, -np.inf], {}, ("b", "0.731")),
    ],
)
def test_answers_of_each_task(logits: list[float], facts: dict[str, Any], said: tuple[str, str]) -> None:
    own: dict[str, Any] = {"__name__": "own", "__file__": "predict.py"}
    exec(program("model.onnx"), own)
    assert own["answer"](np.array(logits, dtype=np.float32), {"classes": ["a", "b", "c"], **facts}) == said


def test_a_class_is_one_line_of_labels_whatever_it_is_called(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    first = finetune.load(run).classes[0]
    odd = f"{first}\ntwice"
    for name in ("model/config.json", "split.csv", "predictions.csv"):
        text = (run / name).read_text()
        quoted = json.dumps(odd) if name.endswith("json") else f'"{odd}"'
        (run / name).write_text(text.replace(f'"{first}"', quoted).replace(f",{first},", f",{quoted},"))
    assert finetune.load(run).classes[0] == odd
    done = finetune.export(run, out=tmp_path / "model.onnx")
    lines = (done.path.parent / "labels.txt").read_text().splitlines()
    assert lines == [f"{first} twice", *finetune.load(run).classes[1:]]
    assert f"one of 6 classes for an image: {first} twice, " in (done.path.parent / "README.md").read_text()
