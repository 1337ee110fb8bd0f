"""The help of each command ends with commands that are ones."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from finetune.cli.app import app
from tests.support import commands

ROOT: Any = typer.main.get_command(app)


def command(words: tuple[str, ...]) -> Any:
    found = ROOT
    for word in words:
        found = found.commands[word]
    return found


def parsed(line: str) -> None:
    """See that a line is a command with flags and arguments that it takes; nothing is run."""
    words = shlex.split(line.split("<")[0])
    assert words.pop(0) == "finetune"
    found, names = ROOT, []
    while hasattr(found, "commands") and words and words[0] in found.commands:
        names.append(words.pop(0))
        found = found.commands[names[-1]]
    with found.make_context(" ".join(names), words):
        pass


@pytest.mark.parametrize("words", [words for words in commands() if not hasattr(command(words), "commands")])
def test_a_command_has_two_examples_or_more_that_it_takes(words: tuple[str, ...]) -> None:
    epilog = command(words).epilog or ""
    lines = [line.strip() for line in epilog.partition("Examples:")[2].splitlines() if line.strip()]
    assert len(lines) >= 2, epilog
    assert any(line.startswith(f"finetune {' '.join(words)}".removesuffix(" ls")) for line in lines)
    for line in lines:
        parsed(line)


def test_a_flag_that_is_none_is_seen() -> None:
    with pytest.raises(typer.BadParameter.__bases__[0]):
        parsed("finetune export runs/RUN --soft-max")
