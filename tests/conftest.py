"""What every test gets: a cache folder of its own and no hub; small folders of images, and quick runs on them."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.backbone import onnx_graph
from finetune.cli import main
from finetune.data import sample
from finetune.data.sample import write_sample
from tests.support import QUICK, TINY

MakeImages = Callable[..., Path]
torch.set_num_threads(1)  # tiny networks: a second thread only waits for the first, badly so on a busy machine


@pytest.fixture(autouse=True)
def _same_draws_in_any_order() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a whole session shares is made before any test's own cache is named."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_power_fails() -> Iterator[None]:
    """Nothing waits for the disk: what is killed here is a process, never the machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _operators_are_read_once() -> Iterator[None]:
    """The exporter reads its table of operators for every graph anew: a third of what a tiny network takes."""
    from torch.onnx._internal.exporter import _registration

    read = cache(_registration.ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(read))
        yield


@pytest.fixture(autouse=True, scope="session")
def _drawn_once() -> Iterator[None]:
    """An image of the sample is drawn once for all that write it; `test_sample.py` draws each time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sample, "draw", cache(sample.draw))
        yield


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """Every phase of a run ends with a collection, which would look through all that is imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeImages:
    """A function that writes a labelled folder of noise, JPEG and PNG in turn, no two images alike."""

    def write(
        folder: str | Path = "images", *, classes: str = "ant bee", per_class: int = 6, side: int = 40, seed: int = 0
    ) -> Path:
        root = tmp_path / folder
        rng = np.random.default_rng(seed)
        for label in classes.split():
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                pixels = rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
                suffix = "png" if number % 2 else "jpg"
                Image.fromarray(pixels).save(root / label / f"{label}-{number:02}.{suffix}")
        return root

    return write


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def finetune_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `finetune ARGS...` and yield (exit code, stdout, stderr)."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    write_sample(folder, per_class=10)
    return folder


@pytest.fixture
def quick_run(drawn: Path, tmp_path: Path) -> Callable[..., finetune.RunResult]:
    """Run on the drawn set with a tiny network, a few seconds; arguments as `finetune.run`."""

    def run(strategy: str = "head-only", *, out: str = "run", backbone: str = "test_resnet", **more: Any):
        return finetune.run(
            drawn, strategy=strategy, backbone=backbone, out=tmp_path / out, **{**QUICK, "epochs": 2, **more}
        )

    return run


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn images in 6 classes."""
    folder = tmp_path_factory.mktemp("few") / "shapes"
    write_sample(folder, per_class=4)
    return folder


@pytest.fixture
def tiny_run(few: Path, tmp_path: Path) -> Callable[..., finetune.RunResult]:
    """Run LeNet-5 on 24 images, half a second; arguments as `finetune.run`. An epoch has 3 steps."""

    def run(strategy: str = "full", *, out: str = "run", data: Path = few, **more: Any):
        return finetune.run(data, strategy=strategy, out=tmp_path / out, **{**TINY, "epochs": 2, **more})

    return run


@pytest.fixture(scope="session")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished head-only run on the drawn set."""
    place = tmp_path_factory.mktemp("finished") / "run"
    finetune.run(drawn, strategy="head-only", backbone="test_resnet", test=0.2, epochs=2, out=place, **QUICK)
    return place


@pytest.fixture
def newer_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are by torch's newer exporter, as where the older one knows no such network."""

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("the older exporter is not asked")

    monkeypatch.setattr(onnx_graph, "_write_older", refused)


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with its ONNX export; tests leave it as it is."""
    place = Path(shutil.copytree(finished, tmp_path_factory.mktemp("exported") / "run"))
    finetune.export(place)
    return place
