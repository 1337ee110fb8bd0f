"""What the docs say is what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_keys_of_the_recipe_are_written_anew_from_the_code() -> None:
    page = ROOT / "docs" / "recipes.md"
    written = runpy.run_path(str(ROOT / "tools" / "write_docs.py"))["with_keys"](page.read_text(encoding="utf-8"))
    assert page.read_text(encoding="utf-8") == written, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_of_the_tool(page: Path) -> None:
    known = {
        *("run", "plan", "check", "compare", "eval", "predict", "export"),
        *("recipes", "cache", "sample", "doctor", "backbones"),
    }
    used = set(re.findall(r"(?:^|[`$] ?)finetune ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= known


def test_the_file_tree_of_the_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "finetune").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"{room}/" not in tree] == []
