"""What the report and the terminal say of evidence that was measured on some of the classes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.cli.evidence import show_evidence
from finetune.cli.terminal import Console
from finetune.report.depth import depth
from finetune.report.page import render
from finetune.strategy.matrix import CELLS, decide
from finetune.types import Evidence, Interval, Size, to_json

ALL = Interval(0.5, 0.4, 0.6)


@pytest.mark.parametrize(("probed", "is_said"), [(None, False), (1200, False), (1000, True)])
def test_it_is_said_of_how_many_classes_where_not_of_all(tmp_path: Path, probed: int | None, is_said: bool) -> None:
    size = Size(50_000, 1200, 20, 40.0, 2.0, 4000, ALL)
    evidence = Evidence(size, {"stem": ALL, "layer4": ALL}, joint=ALL, behind=ALL, spread=0.2, logme=1.0)
    evidence = replace(evidence, size=replace(size, num_classes_probed=probed))
    verdict, stream = decide(evidence), io.StringIO()
    show_evidence(Console(file=stream), evidence, verdict)
    content = {"evidence": evidence, "verdict": verdict, "depth": depth(to_json(evidence)), "matrix": CELLS}
    render(tmp_path / "page.html", "evidence.html.j2", content)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("classes probed" in stream.getvalue()) == is_said
    assert ("4000 train images of 1000 of the 1200 classes" in page) == is_said
    assert ("separates 1000 of them at 50%" in verdict.reason) == is_said
    assert "on 4000 train images" in page
