"""What the docs say is what the code does."""

from __future__ import annotations

import ast
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune import recipe as recipes
from finetune.arguments import SettingsWithData
from tests.support import command_of, commands, parsed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_what_comes_from_the_code_is_what_the_code_says() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "write_docs.py"))
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in tool["PAGES"]}
    assert [name for name, text in pages.items() if tool["written"](name, text) != text] == []


def test_what_is_written_comes_from_the_checkout_of_the_tool(tmp_path: Path) -> None:
    (tmp_path / "finetune.py").write_text("raise ImportError('another checkout')")
    code = f"import runpy; print(runpy.run_path({str(ROOT / 'tools' / 'write_docs.py')!r})['finetune'].__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / "finetune" / "__init__.py"), done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    missing = [
        f"{page.name}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert missing == []


def test_every_command_on_a_page_is_one_of_the_tool() -> None:
    known = {words[0] for words in commands()}
    used = {
        f"{page.name}: {word}"
        for page in PAGES
        for word in re.findall(r"(?:^|[`$] ?)finetune ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        if word not in known
    }
    assert used == set()


FENCED = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
SEVERAL = ("torchrun ", "accelerate ", "srun ")


def command_lines(page: Path) -> list[str]:
    """Return the commands of a page's code blocks, without what is said behind them and what they are piped into."""
    text = "\n".join(FENCED.findall(page.read_text(encoding="utf-8")))
    lines = [line.removeprefix("$ ") for line in re.sub(r"\\\n\s*", "", text).splitlines()]
    lines = [line.partition(" -m ")[2] if line.startswith(SEVERAL) else line for line in lines]
    lines = [line.rpartition(" | ")[2] if " | finetune " in line else line for line in lines]
    return [re.split(r"\s{2,}(?!-)| # | [|>] ", line)[0] for line in lines if line.startswith("finetune ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_code_block_is_taken_with_its_flags_and_keys(page: Path) -> None:
    for line in command_lines(page):
        recipes.load(overrides=dict(recipes.parse_set(pair) for pair in parsed(line).get("set_") or []))


def test_no_page_has_its_commands_overlooked() -> None:
    counts = {page.stem: len(command_lines(page)) for page in PAGES}
    assert counts["quickstart"] >= 8 and counts["predict"] >= 15 and counts["scale"] >= 5 and counts["README"] >= 2


def test_every_flag_of_a_command_in_the_text_is_one_of_that_command() -> None:
    wrong = []
    for page in PAGES:
        for line in re.findall(r"`(finetune [^`\n]*)`", FENCED.sub("", page.read_text(encoding="utf-8"))):
            command, left = command_of(line.split()[1:])
            command = getattr(command, "commands", {}).get("ls", command)
            known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            flags = {word for word in left if word.startswith("--")} - {"--help"}
            wrong += [f"{page.name}: {line}" for flag in flags if flag not in known]
    assert wrong == []


def test_every_key_that_set_names_on_a_page_is_one_with_such_a_value() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        pairs = re.findall(r"""--set ["']?([a-z]+\.[a-z_0-9]+=(?:\[[^]]*\]|\d+ \w+|[^\s`"']+))""", text)
        for pair in {*pairs} - {"section.key=value"}:
            recipes.load(overrides=dict([recipes.parse_set(pair)]))


def python_calls(page: Path) -> list[tuple[str, set[str | None]]]:
    """Return which functions of the package the Python of a page calls, each with the names of its arguments."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"`(finetune\.\w+\([^`]*\)[^`]*)`", text)
    code += re.findall(r"^ {4}(finetune\..*\))$", text, re.MULTILINE)
    if page.stem != "api":  # whose blocks are signatures
        code += re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    calls = [node for block in code for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func), {word.arg for word in call.keywords}) for call in calls]
    return [(name, words) for name, words in named if re.fullmatch(r"finetune\.\w+", name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_calls_functions_by_arguments_that_they_take(page: Path) -> None:
    for name, words in python_calls(page):
        parameters = inspect.signature(getattr(finetune, name.removeprefix("finetune."))).parameters
        settings = SettingsWithData.__annotations__ if "settings" in parameters else {}
        assert words <= {*parameters, *settings}, name


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


def test_a_client_has_as_many_lines_as_the_pages_say() -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
    client = pages["export"].partition("## What a client has to do")[2].partition("```python\n")[2].partition("```")[0]
    said = [int(number) for text in pages.values() for number in re.findall(r"(\d+) lines of Python", text)]
    assert set(said) == {len(client.splitlines())}


def test_the_report_page_names_the_keys_that_a_report_advises() -> None:
    advice = (ROOT / "finetune" / "report" / "diagnosis.py").read_text(encoding="utf-8")
    keys = set(re.findall(r"(?:augment|loss|regularise)\.\w+(?==)", advice))
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert keys and [key for key in sorted(keys) if key not in page] == []
