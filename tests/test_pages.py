"""Every command and every Python block of the pages is run, in order, in a folder that has what they name.

What is not run stands in NOT_RUN, with the reason. Networks are tiny and random, images small and epochs few
(`quickly`): what is claimed is that a page's commands work as they are written, not what they reach.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

import finetune
from finetune.data.sample import write_sample
from tests.conftest import Done
from tests.support import ROOT, random_folders, stop_after
from tests.test_docs import FENCED, PAGES

pytestmark = pytest.mark.slow

NOT_RUN = {
    "backbones fetch": "needs the model hub",
    "backbones rank --data imgs resnet18": "needs weights from the model hub",
    "--among resnet18": "needs weights from the model hub",
    "--among weights/deit_tiny,resnet18": "needs weights from the model hub",
    "https://example.org": "needs the network",
    "hfds:": "needs the Hub, or files of its form: tests/data/test_hub_rows.py writes them",
    "wds:s3://": "needs an object store: tests/workflow/test_shards.py starts one, where it is",
    "{000000..000099}": "names more shards than a small set has: tests/data/test_shards.py",
    "pip install": "needs the package index",
    "torchrun": "a launcher of several processes: tests/test_ranks.py starts it",
    "accelerate launch": "a launcher of several processes, and GPUs",
    "--format openvino": "needs OpenVINO: tests/exports/test_formats.py, where it is",
    "--format litert": "needs litert-torch: tests/exports/test_formats.py, where it is",
    "--format coreml": "needs macOS",
    "tools/embedded/distil.py": "hours of computing, and the images of the teacher",
    "onnxruntime.InferenceSession(sys.argv[1])": "a client of its own: tests/exports/test_strangers.py runs it",
    "cv2.dnn": "needs OpenCV: tests/exports/test_strangers.py, where it is",
    "ray.train": "needs Ray and GPUs",
    "eval RUN --corrupt": "needs imagecorruptions: tests/evaluation/test_corruptions.py, where it is",
    "--precision int8": "refused where 8 bits are no quicker, as for networks so small: tests/exports/test_outputs.py",
    "IMAGES...": "how a command is put together, none itself",
    "found.to_dataframe()": "needs pandas: tests/cli/test_notebook.py, where it is",
}
SHORTER = {"tune imgs --time 20m": "tune imgs --time 10s", "--trials 30": "--trials 6", "--folds 5": "--folds 2"}
NETWORK = "test_resnet"
WEIGHTS = f"weights/{NETWORK}"
NAMES_ONE = {"--backbone", "--weights", "--among", "lenet5"}
QUICK = {"--image-size": "32", "--epochs": "1", "--device": "cpu", "--workers": "0"}
TRAIN = {"run", "compare", "tune"}  # verbs that take epochs
TAKES = TRAIN | {"find-lr", "check", "plan", "augment"}  # verbs that take a backbone
FINETUNE_OF_SHELL = 'finetune() { "$PYTHON" -m finetune "$@"; }; '


def command_lines(page: Path) -> Iterator[str]:
    """Yield the commands of a page's code blocks, without what is said behind them, pipes and all."""
    for block in FENCED.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            words = re.split(r"\s{2,}(?!-)| # ", line.removeprefix("$ "))[0]
            if words.startswith(("finetune ", "find ")) and "/shared/" not in words:
                yield words


def python_blocks(page: Path) -> Iterator[str]:
    """Yield the Python of a page, but for the page of signatures."""
    if page.stem != "api":
        yield from re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def is_run(text: str) -> bool:
    return not any(part in text for part in NOT_RUN)


def quickly(line: str) -> list[str]:
    """Return the words of a command behind `finetune`, so that it takes seconds; settings that it names itself stay."""
    for long, short in SHORTER.items():
        line = line.replace(long, short)
    verb, *words = shlex.split(line)[1:]
    if verb not in TAKES or "--resume" in words or (verb == "compare" and "imgs" not in words):
        return [verb, *words]
    if "--backbone" in words and verb != "plan":
        place = words.index("--backbone")
        assert words[place + 1] == "embedded" or timm.is_model(words[place + 1].partition(".")[0]), line
        words[place : place + 2] = ["--weights", WEIGHTS]
    quick = {flag: value for flag, value in QUICK.items() if flag != "--epochs" or verb in TRAIN}
    quick |= {} if NAMES_ONE & {*words} else {"--weights": WEIGHTS}
    return [verb, *words, *(part for flag in quick if flag not in words for part in (flag, quick[flag]))]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the pages name: data, weights, runs that are finished and runs that were stopped."""
    place = tmp_path_factory.mktemp("stage")
    write_sample(place / "imgs", per_class=16)
    files = sorted((place / "imgs").rglob("*.jpg"))
    for name in ("hymenoptera", "hymenoptera_data", "textures", "breast_ultrasound", "more"):
        shutil.copytree(place / "imgs", place / name)
    (place / "photos").mkdir()
    Image.open(files[0]).save(place / "photos" / "3.png")
    for target in ("photo.jpg", "photos/1.jpg", "photos/2.jpg", "more/1.jpg"):
        shutil.copy(files[0], place / target)
    lay_tables(place, files)
    lay_tiles(place / "tiles")
    (place / "weights").mkdir()
    random_folders(place / "weights", [NETWORK], side=32)
    for name in ("weights/resnet18", "weights/mobilenetv2_100", "weights/deit_tiny_patch16_224", "mobilenetv2_100"):
        shutil.copytree(place / "weights" / NETWORK, place / name)
    lay_runs(place)
    return place


def lay_tables(place: Path, files: list[Path]) -> None:
    """Write table.csv with one label, several and columns of 0 and 1; scans with patients, as a folder and a table."""
    with (place / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "picture", "label", "beach", "sunset"])
        for number, file in enumerate(files):
            has = [name for bit, name in enumerate(("beach", "sunset")) if number >> bit & 1]
            name = file.relative_to(place)
            writer.writerow([name, name, "|".join(has), *(int(label in has) for label in ("beach", "sunset"))])
    with (place / "scans.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "scan", "label", "patient"])
        for number, file in enumerate(files):
            target = place / "scans" / file.parent.name / f"p{number % 8}_{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            writer.writerow([*2 * [target.relative_to(place)], file.parent.name, number % 8])


def lay_tiles(place: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("field", "forest"):
        (place / label).mkdir(parents=True)
        for number in range(12):
            np.save(
                place / label / f"scene{number % 6}_{number}.npy", rng.integers(0, 4096, (40, 40, 6), dtype=np.uint16)
            )


def lay_runs(place: Path) -> None:
    """Leave finished runs under the names of the pages, and, in stopped/, one of each kind that can go on."""
    usual: dict[str, Any] = {
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
        "weights": place / "weights" / NETWORK,
    }
    parts: dict[str, Any] = {"val": 0.4, "test": 0.2, "strategy": "full", "epochs": 2}
    for seed, name in enumerate(("A", "B", "C")):
        finetune.run(place / "imgs", out=place / "runs" / name, seed=seed, **usual, **parts)
    for name in ("runs/RUN", "runs/ONE", "runs/OTHER", "RUN"):
        finetune.run(place / "imgs", out=place / name, **usual, **parts)
    begun: dict[str, Callable[..., Any]] = {
        "run": lambda *data, **more: finetune.run(*data, strategy="full", **more),
        "compare": lambda *data, **more: finetune.compare(*data, strategies=["full", "top-k"], **more),
        "several": lambda *data, **more: finetune.run_several(*data, strategy="full", folds=3, **more),
    }
    for kind, begin in begun.items():
        with pytest.raises(finetune.Interrupted):
            begin(place / "imgs", out=place / "stopped" / kind, epochs=4, on_event=stop_after(8), test=0.2, **usual)
    with pytest.raises(KeyboardInterrupt):
        finetune.tune(
            place / "imgs", out=place / "stopped" / "tune", strategy="full", epochs=2, trials=3,
            on_event=stop_in_a_trial,
            **usual,
        )  # fmt: skip


def stop_in_a_trial(event: finetune.Event) -> None:
    if event.kind == "trial":
        raise KeyboardInterrupt


def kind_of(words: list[str]) -> str:
    """Return which kind of folder a command goes on with."""
    return "several" if "runs/FOLDER" in words else words[0]


def put_back(place: Path, words: list[str]) -> None:
    """Lay the stopped folder again that a command goes on with, and take away what it is to write anew."""
    if words[0] == "sample":
        shutil.rmtree(place / words[1])
    if "--resume" in words:
        target = place / words[words.index("--resume") + 1]
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(place / "stopped" / kind_of(words), target)
    for flag in ("--out", "--to", "--copy-to"):
        if flag in words:
            target = place / words[words.index(flag) + 1]
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


@pytest.mark.parametrize("page", [page for page in PAGES if any(command_lines(page))], ids=lambda page: page.stem)
def test_every_command_of_a_page_does_what_it_says(
    page: Path, stage: Path, tmp_path: Path, finetune_cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(stage, tmp_path / "place", symlinks=True))
    monkeypatch.chdir(place)
    failed = []
    for line in filter(is_run, command_lines(page)):
        words = quickly(line) if line.startswith("finetune ") else shlex.split(line)
        put_back(place, words)
        if "|" in words or "<" in words or line.startswith("find "):
            environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
            command = ["bash", "-c", FINETUNE_OF_SHELL + line]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            code, said = done.returncode, done.stderr
        else:
            code, _, said = finetune_cli(*words)
        if code:
            failed.append(f"{line}\n    {code}: {said.strip()[-400:]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("page", [page for page in PAGES if any(python_blocks(page))], ids=lambda page: page.stem)
def test_every_python_block_of_a_page_runs(
    page: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(stage, tmp_path / "place", symlinks=True))
    monkeypatch.chdir(place)
    train = finetune.run
    quick: dict[str, Any] = {"image_size": 32, "epochs": 1, "workers": 0, "device": "cpu", "pretrained": False}
    monkeypatch.setattr(finetune, "run", lambda *data, **own: train(*data, **{**quick, **own, "backbone": NETWORK}))
    given = {"finetune": finetune, "images": ["photo.jpg"], "camera": lambda: iter([np.zeros((40, 40, 3), np.uint8)])}
    for block in python_blocks(page):
        lines = [line for line in block.splitlines() if is_run(line)] if "ray.train" not in block else []
        if is_run(block) or "to_dataframe" in block:
            exec(compile("\n".join(lines), page.name, "exec"), dict(given))


def test_what_is_not_run_stands_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [part for part in NOT_RUN if part not in text] == []
