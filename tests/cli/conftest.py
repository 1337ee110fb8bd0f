"""The command line as a user types it, in this process, and a place with images and a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import finetune
from finetune.cli import main
from finetune.data.sample import write_sample


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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 drawn images in `imgs` and a finished run on them in `runs/one`; tests leave it as it is."""
    place = tmp_path_factory.mktemp("place")
    write_sample(place / "imgs", per_class=8)
    finetune.run(
        place / "imgs", strategy="head-only", backbone="test_resnet", pretrained=False, image_size=32, epochs=1,
        device="cpu", workers=0, out=place / "runs" / "one",
    )  # fmt: skip
    return place
