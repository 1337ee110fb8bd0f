"""What a notebook shows while a function runs: lines, a bar, and the report at the end of a run."""

from __future__ import annotations

import inspect
import io
import sys
import time
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

from finetune import inline
from finetune.cli.screen import Screen, silent_board
from finetune.cli.terminal import Console
from finetune.types import Event

REDRAWN = 0.2  # seconds
LINES = 200
STYLE = 'style="max-height:24em;overflow:auto;margin:0;font-size:smaller;white-space:pre-wrap"'
WITH_REPORT = ("run", "resume")


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def drawing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that draws its progress in the cell, unless it is given an `on_event`."""
    if function.__name__ == "load":
        return _drawing_predictions(function)
    if "on_event" not in inspect.signature(function).parameters:
        return function

    @wraps(function)
    def drawn(*args: Any, **given: Any) -> Any:
        if "on_event" in given:
            return function(*args, **given)
        with CellOutput() as cell:
            result = function(*args, **given, on_event=cell.show)
        if function.__name__ in WITH_REPORT:
            _display(inline.html_page(result.folder / "report.html"))
        return result

    return drawn


def _drawing_predictions(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loading function whose model draws the progress of its predictions."""

    @wraps(load)
    def loaded(*args: Any, **given: Any) -> Any:
        classifier = load(*args, **given)
        classifier.predict = drawing(classifier.predict)
        return classifier

    return loaded


class CellOutput:
    """The output of a cell: lines as without a terminal, and a bar below them."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        console = Console(file=self._text, width=100, force_jupyter=False, force_terminal=False, color_system=None)
        self._screen = Screen(console, silent_board(console))
        self._bars: dict[str, tuple[int, int | None]] = {}
        self._drawn = 0.0
        self._handle: Any = None

    def __enter__(self) -> CellOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.clear()
        self._draw()

    def show(self, event: Event) -> None:
        """Take one event, and redraw if the last time is long enough ago."""
        facts = event.facts
        if event.kind == "progress":
            self._bars[facts["task"]] = facts["done"], facts["total"]
            if facts["total"] is not None and facts["done"] >= facts["total"]:
                del self._bars[facts["task"]]
        else:
            self._screen.show(event)
        if event.kind == "step":
            done, total = (facts["epoch"] - 1) * facts["steps"] + facts["step"], facts["epochs"] * facts["steps"]
            self._bars = {"train": (done, total)} if done < total else {}
        if time.monotonic() - self._drawn > REDRAWN:
            self._draw()

    def html(self) -> str:
        """Return what the cell shows."""
        lines = self._text.getvalue().splitlines()[-LINES:]
        bars = "".join(map(_bar, self._bars, self._bars.values()))
        return (f"<pre {STYLE}>{escape(chr(10).join(lines))}</pre>" if lines else "") + bars

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is None:
            self._handle = _display(self.html())
        else:
            self._handle.update(_html(self.html()))


def _bar(task: str, place: tuple[int, int | None]) -> str:
    done, total = place
    count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
    share = "" if total is None else f' value="{done}" max="{total}"'
    return f"<div>{escape(task)} <progress{share}></progress> {count}</div>"


def _html(text: str) -> Any:
    return sys.modules["IPython"].display.HTML(text)


def _display(text: str) -> Any:
    return sys.modules["IPython"].display.display(_html(text), display_id=True)
