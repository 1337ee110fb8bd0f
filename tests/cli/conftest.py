"""The command line as a user types it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from finetune.cli import main


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
