"""What the docs say is what the code does."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_what_comes_from_the_code_is_what_the_code_says() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "write_docs.py"))
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in tool["PAGES"]}
    assert [name for name, text in pages.items() if tool["written"](name, text) != text] == []


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


TESTED = re.findall(r"`pytest ([^`]*)`", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))


@pytest.mark.parametrize("command", sorted({command for command in TESTED if "tests/" in command}))
def test_every_file_that_a_page_names_as_a_test_is_there_and_none_is_deselected(command: str) -> None:
    """A word after -k that only one of the named files knows silently leaves out the others."""
    words = shlex.split(command)
    chosen = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
    for path in (ROOT / word for word in words if word.startswith("tests/")):
        assert path.exists(), path
        files = [path] if path.is_file() else path.rglob("test_*.py")
        names = [
            name for file in files for name in (file.name, *re.findall(r"def (test_\w+)", file.read_text("utf-8")))
        ]
        assert any(word in name for word in chosen for name in names), f"{path.name} is left out by -k"


def test_the_file_tree_of_the_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "finetune").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"{room}/" not in tree] == []
