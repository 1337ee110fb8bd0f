"""The help of each command ends with commands that are ones."""

from __future__ import annotations

import pytest
import typer

from tests.support import command_of, commands, parsed

LEAVES = [words for words in commands() if not hasattr(command_of(words)[0], "commands")]


@pytest.mark.parametrize("words", LEAVES)
def test_a_command_has_two_examples_or_more_that_it_takes(words: tuple[str, ...]) -> None:
    epilog = command_of(words)[0].epilog or ""
    lines = [line.strip() for line in epilog.partition("Examples:")[2].splitlines() if line.strip()]
    assert len(lines) >= 2, epilog
    assert any(line.startswith(f"finetune {' '.join(words)}".removesuffix(" ls")) for line in lines)
    for line in lines:
        parsed(line)


def test_a_flag_that_is_none_is_seen() -> None:
    with pytest.raises(typer.BadParameter.__bases__[0]):
        parsed("finetune export runs/RUN --soft-max")
