"""What stands in examples/ runs offline, on drawn images, and does what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ALONE = [path.stem for path in EXAMPLES if path.stem != "client"]


def said_by(name: str, place: Path) -> str:
    """Run an example as a user would, in a folder of its own, and return what it printed."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "made"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(said: str) -> int:
    """Return how many of the six new images, one of each class, an example named rightly."""
    rows = re.findall(r"^(\S+)-000\.jpg: (\S+)", said, re.MULTILINE)
    assert len(rows) == 6
    return sum(own == answer for own, answer in rows)


@pytest.fixture(autouse=True)
def _this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_freeze_plan_of_ones_own_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    said = said_by("own_loop", tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", said)]
    assert losses[-1] < losses[0] and float(re.findall(r"val top1 (\S+)", said)[0]) > 1.5 / 6
    assert answers(said) >= 4
    assert (tmp_path / "made" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_evidence_verdict_and_result_are_read_from_python(tmp_path: Path) -> None:
    said = said_by("verdict", tmp_path)
    assert re.search(r"blocks\.\d +0\.\d\d \[0\.\d\d, \d\.\d\d\]", said) and re.search(r"(few|many) images, ", said)
    assert (tmp_path / "made" / "run" / "report.html").is_file()
    assert answers(said) >= 4


@pytest.mark.slow
def test_a_client_that_knows_nothing_of_finetune_gives_its_answers(tmp_path: Path) -> None:
    assert "agree on 120 of 120 images" in said_by("deploy", tmp_path)


def test_the_client_is_that_of_the_docs_and_imports_nothing_of_ours() -> None:
    code = (ROOT / "examples" / "client.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert "finetune" not in code and len(code.strip().splitlines()) <= 11


def test_every_example_is_tested_here_says_how_it_is_started_and_is_named_where_a_reader_looks() -> None:
    own = Path(__file__).read_text(encoding="utf-8")
    for name in ALONE:
        text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert f"python examples/{name}.py" in str(ast.get_docstring(ast.parse(text)))
        assert f'said_by("{name}"' in own
        assert f"examples/{name}.py" in (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"{name}.py" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
