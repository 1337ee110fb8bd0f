"""The site of the docs has every page, and builds strictly where MkDocs is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MKDOCS = shutil.which("mkdocs", path=f"{ROOT / '.venv-site' / 'bin'}{os.pathsep}{os.environ['PATH']}")


def pages(part: Any) -> Iterator[str]:
    """Yield the pages of a navigation, in order."""
    if isinstance(part, str):
        yield part
    else:
        for below in part.values() if isinstance(part, dict) else part:
            yield from pages(below)


def test_the_navigation_names_every_page_once_and_nothing_else() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(navigation)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.skipif(MKDOCS is None, reason="no MkDocs here: make site")
def test_the_site_builds_strictly_and_a_browser_fetches_nothing_for_it(tmp_path: Path) -> None:
    build = [str(MKDOCS), "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {path.stem + ".html" for path in (ROOT / "docs").glob("*.md")} <= set(made)
    assert [name for name, text in made.items() if re.search(r'<(script|link|img)[^>]*(src|href)="https?:', text)] == []
