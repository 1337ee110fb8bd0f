"""Results as a notebook shows them: tables, sentences and whole pages as HTML, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.types import Interval

LARGEST_PAGE = 8_000_000  # bytes that are put into a notebook
FRAME = 'style="width:100%;height:36em;border:1px solid #8888;border-radius:4px"'


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; an interval is a cell as it is."""
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_metrics(metrics: Mapping[str, Mapping[str, Interval | Mapping[str, float]]], *, first: str = "") -> str:
    """Return measures with their intervals, a row for each split, run or candidate."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = ([split, *(values.get(name) for name in names)] for split, values in metrics.items())
    return html_table([first, *names], rows)


def bracketed(measured: Interval, *, digits: int = 2) -> str:
    """Return a value with its interval in brackets, the ends rounded to `digits`."""
    return f"{measured.value:.3f} [{measured.low:.{digits}f}, {measured.high:.{digits}f}]"


def html_lines(*texts: str) -> str:
    """Return texts, each in a line of its own."""
    return "".join(f"<div>{escape(text)}</div>" for text in texts if text)


def html_page(path: Path) -> str:
    """Return a page in a frame; where it is gone, or too large for a notebook, only where it lies."""
    if not path.is_file() or path.stat().st_size > LARGEST_PAGE:
        return html_lines(f"see {path}" if path.is_file() else "")
    frame = f'<iframe srcdoc="{escape(path.read_text())}" sandbox="allow-scripts allow-popups" {FRAME}></iframe>'
    return f"<div>{frame}</div>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        value = Interval(value["value"], value["low"], value["high"])
    if isinstance(value, Interval):
        return bracketed(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
