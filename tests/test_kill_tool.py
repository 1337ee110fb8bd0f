"""The tool that kills runs compares every file of them that counts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import tool

FILES = (
    "metrics.json", "metrics.jsonl", "predictions.csv", "evidence.json", "plan.json", "split.csv", "recipe.toml",
    "model/model.safetensors", "checkpoints/last/state.json", "checkpoints/best/model.safetensors",
    "refit/metrics.jsonl", "refit/checkpoints/last/model.safetensors",
)  # fmt: skip
OTHER = ("timing.json", "environment.json", "report.html", ".lock", "checkpoints/last.before/state.json")


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return tool("kill", monkeypatch)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in (*FILES, *OTHER):
        (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).write_text(name)
    return tmp_path / "whole", Path(shutil.copytree(tmp_path / "whole", tmp_path / "resumed"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_differs_or_is_gone_is_named(kill: ModuleType, runs: tuple[Path, Path], name: str) -> None:
    whole, resumed = runs
    assert kill.differences(whole, resumed) == []
    (resumed / name).write_text("another")
    assert kill.differences(whole, resumed) == [name]
    (resumed / name).unlink()
    assert kill.differences(whole, resumed) == [name]


def test_what_tells_of_a_process_may_differ_and_what_is_half_written_may_not_stay(
    kill: ModuleType, runs: tuple[Path, Path]
) -> None:
    whole, resumed = runs
    for name in OTHER:
        (resumed / name).write_text("another")
    assert kill.differences(whole, resumed) == []
    (resumed / "checkpoints/.last.new").mkdir()
    (resumed / ".plan.json.new").touch()
    assert kill.differences(whole, resumed) == [".plan.json.new", "checkpoints/.last.new"]
