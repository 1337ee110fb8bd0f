"""A small drawn data set, a quick recipe, and runs on them, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.data.sample import write_sample

QUICK = {"image_size": 64, "batch_size": 16, "workers": 0, "device": "cpu", "pretrained": False}


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


TINY = {"backbone": "lenet5", "pretrained": False, "image_size": 32, "batch_size": 8, "workers": 0, "device": "cpu"}


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
