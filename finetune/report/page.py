"""report.html: one file that opens offline and says what was trained, why, and how well.

Everything that comes from the user's files (class names, paths) is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune.whole import write_text


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a run; `content` is what `saved.report_content` gathers from its folder."""
    render(path, "page.html.j2", content)


def render(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page from a template of this room; what comes from files is escaped."""
    write_text(path, _environment().get_template(template).render(content))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("finetune.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
