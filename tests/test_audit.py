"""The audit of dependencies: a finding fails, no answer does not, and both are said."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import tool

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return tool("audit", monkeypatch)


def answer(**vulns: list[dict[str, Any]]) -> str:
    packages = [{"name": name, "version": "1.0", "vulns": found} for name, found in vulns.items()]
    return json.dumps({"dependencies": [*packages, {"name": "local", "skip_reason": "not published"}], "fixes": []})


def test_no_finding_passes(audit: ModuleType) -> None:
    assert audit.verdict(answer(torch=[], timm=[]), "") == (0, "audited: 3 packages, no known vulnerability")


def test_a_finding_fails_and_names_the_way_out(audit: ModuleType) -> None:
    found = [{"id": "CVE-1", "fix_versions": ["1.1", "2.0"]}, {"id": "CVE-2", "fix_versions": []}]
    code, text = audit.verdict(answer(torch=found, timm=[]), "Found 2 known vulnerabilities in 1 package")
    assert code == 1
    assert text.splitlines()[1:] == [
        "torch 1.0: CVE-1, mended in 1.1, 2.0",
        "torch 1.0: CVE-2, mended in no version yet",
    ]


@pytest.mark.parametrize("out", ["", "[]", "{}", "<html>"])
def test_no_answer_is_said_and_does_not_fail(audit: ModuleType, out: str) -> None:
    assert audit.verdict(out, "Traceback ...\nConnectionError: no route") == (
        0,
        "not audited: pip-audit gave no answer (ConnectionError: no route)",
    )


def test_without_the_tool_it_says_so(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert audit.main() == 0
    assert "not installed" in capsys.readouterr().out


def test_continuous_integration_asks_for_it() -> None:
    assert "make audit" in (ROOT / ".ci" / "run").read_text()
    assert "tools/audit.py" in (ROOT / "Makefile").read_text()
