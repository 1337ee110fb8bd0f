"""docs/notes.md: every line of the lecture notes with a key or command that there is, and a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

from finetune import recipe as recipes
from finetune.values import STRATEGY_NAMES

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "notes.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| line", "| ---"))
]


def test_every_key_and_strategy_is_there() -> None:
    named = [text for row in ROWS for text in re.findall(r"`([a-z]+\.[a-z_0-9]+)[` ]", row[1]) if text != "report.html"]
    assert len(named) > 30
    assert [key for key in named if key not in recipes.fields()] == []
    strategies = [name for row in ROWS for name in re.findall(r'strategy\.name = "([a-z-]+)"', row[1])]
    assert strategies and set(strategies) <= set(STRATEGY_NAMES)


def test_the_test_of_a_line_speaks_of_each_of_its_keys_and_commands() -> None:
    """A key by its own name, a strategy by its value, a command by its last word."""
    silent = []
    for line, named, test in ROWS:
        text = (ROOT / test.strip("`")).read_text(encoding="utf-8") if test else ""
        keys = re.findall(r"`([a-z]+\.[a-z_0-9]+)`", named.replace("report.html", ""))
        words = [key.partition(".")[2] for key in keys]
        words += re.findall(r'strategy\.name = "([a-z-]+)"', named)
        words += [command.split()[-1].strip("-") for command in re.findall(r"`finetune ([a-z- ]+)", named)]
        said = {word.strip("-") for word in re.findall(r"[\w-]+", text)}
        silent += [(line, word) for word in words if not {word, word.replace("-", "_")} & said]
    assert silent == []


def test_every_test_is_there_and_every_built_line_has_one() -> None:
    assert [row[2] for row in ROWS if row[2] and not (ROOT / row[2].strip("`")).is_file()] == []
    assert all(bool(row[2]) != (row[1] == "not built yet") for row in ROWS)
