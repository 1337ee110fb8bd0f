"""In a notebook functions draw what they do, a run ends with its report, and results have an HTML of their own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import finetune
from finetune import inline
from finetune.cli import notebook
from finetune.data.findings import Finding
from finetune.types import Event, Interval
from tests.support import QUICK

VILE = "<script>alert(1)</script>"


@dataclass
class Output:
    """What a cell has been shown, the newest last."""

    shown: list[str] = field(default_factory=list)

    def update(self, html: Any) -> None:
        self.shown.append(html.data)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[Output]:
    """A kernel of a notebook, as far as it is asked: the outputs of its cells."""
    outputs: list[Output] = []

    def display(html: Any, *, display_id: bool) -> Output:
        assert display_id
        outputs.append(Output([html.data]))
        return outputs[-1]

    shown = SimpleNamespace(HTML=lambda text: SimpleNamespace(data=text), display=display)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=shown))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(notebook, "REDRAWN", 0.0)
    for name in finetune._LATER:
        monkeypatch.delitem(vars(finetune), name, raising=False)
    yield outputs  # type: ignore[misc]
    for name in finetune._LATER:
        vars(finetune).pop(name, None)


def balanced(html: str) -> str:
    """Return a piece of HTML once every tag in it is seen to be closed."""
    open_tags: list[str] = []

    class Checked(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checked().feed(html)
    assert open_tags == []
    return html


def test_a_run_draws_its_lines_and_a_bar_and_ends_with_its_report(
    cells: list[Output], drawn: Path, tmp_path: Path
) -> None:
    result = finetune.run(drawn, strategy="head-only", backbone="test_resnet", epochs=2, out=tmp_path / "run", **QUICK)
    drawing, report = cells
    assert any("<progress" in shown for shown in drawing.shown)
    assert "epoch   2" in drawing.shown[-1] and "<progress" not in drawing.shown[-1]
    assert unescape(report.shown[-1]).count((tmp_path / "run" / "report.html").read_text()) == 1
    assert "top1" in balanced(result._repr_html_())
    finetune.load(result.folder).predict(sorted(drawn.rglob("*.jpg"))[:3])
    assert len(cells) == 3


def test_who_hears_of_it_already_is_left_alone(cells: list[Output], drawn: Path) -> None:
    heard: list[Event] = []
    finetune.plan(drawn, strategy="head-only", backbone="test_resnet", on_event=heard.append)
    assert cells == []


def test_outside_of_a_notebook_nothing_is_wrapped() -> None:
    assert finetune.run is import_module("finetune.workflow.run").run and not notebook.in_notebook()


def test_every_result_has_an_html_that_is_whole_and_escaped(drawn: Path, tmp_path: Path) -> None:
    more = {"backbone": "test_resnet", **QUICK}
    run = finetune.run(drawn, strategy="head-only", epochs=2, out=tmp_path / "run", **more)
    predicted = finetune.load(run.folder).predict(sorted(drawn.rglob("*.jpg"))[:25], features=True)
    assert "and 5 more" in balanced(predicted._repr_html_())
    assert "ece" in balanced(finetune.evaluate(run.folder, split="val")._repr_html_())
    plan = balanced(finetune.plan(drawn, strategy="head-only", **more)._repr_html_())
    assert "head-only on test_resnet" in plan and ">none<" in plan
    compared = finetune.compare_runs(
        [run.folder, finetune.run(recipe=run.folder / "recipe.toml", lr=0.1, out=tmp_path / "b").folder]
    )
    assert "optim.lr" in balanced(compared._repr_html_())
    checked = finetune.Check("data", "root", 1, {}, None, (VILE,), None, (Finding("copy", True, VILE, "way"),))  # type: ignore[arg-type]
    assert VILE not in balanced(checked._repr_html_()) and "&lt;script" in checked._repr_html_()


def test_a_page_that_is_gone_or_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "report.html"
    assert inline.html_page(place) == ""
    place.write_text(f"<p>{VILE}</p>")
    assert unescape(balanced(inline.html_page(place))).count(VILE) == 1 and VILE not in inline.html_page(place)
    monkeypatch.setattr(inline, "LARGEST_PAGE", 3)
    assert str(place) in inline.html_page(place) and "iframe" not in inline.html_page(place)


def test_a_measure_that_one_row_lacks_is_an_empty_cell() -> None:
    html = inline.html_metrics(
        {"val": {"top1": Interval(0.5, 0.4, 0.6)}, "test": {"loss": {"value": 1.0, "low": 0.5, "high": 2.0}}}
    )
    assert html.count("<td></td>") == 2 and "0.500 [0.40, 0.60]" in html and "1.000 [0.50, 2.00]" in html
