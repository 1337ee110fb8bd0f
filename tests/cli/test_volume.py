"""--quiet leaves warnings and the result, --verbose says when; and no command that draws is without them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from finetune.cli import screen
from finetune.cli.app import app
from finetune.types import Event
from tests.support import commands


def shown(volume: screen.Volume, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that a few events leave on stderr."""
    events = [
        Event.message("a message"),
        Event.warning("a warning"),
        Event("timing", {"phase": "head", "epoch": 3, "seconds": 2.5, "waited": 0.5}),
    ]
    with screen.at_volume(volume), screen.watching() as on_event:
        for event in events:
            on_event(event)
    return capsys.readouterr().err.splitlines()


def test_more_is_said_the_louder_it_is_asked_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("quiet", capsys) == ["note: a warning"]
    assert shown("usual", capsys) == ["a message", "note: a warning"]
    loud = shown("verbose", capsys)
    assert all(re.match(r" *\d+\.\d s  ", line) for line in loud) and len(loud) == 3
    assert loud[2].endswith("epoch   3  2.5 s, 0.5 s of them waiting for images")


def test_a_command_is_as_loud_as_it_is_asked_to_be_and_the_next_is_as_usual(finetune_cli, drawn: Path) -> None:
    words = ("plan", drawn, "--backbone", "test_resnet", "--no-pretrained")
    usual, quiet, again = finetune_cli(*words), finetune_cli(*words, "--quiet"), finetune_cli(*words)
    assert (usual.err, usual.out) == (again.err, again.out)
    assert quiet.out == usual.out and len(quiet.err.splitlines()) < len(usual.err.splitlines())
    both = finetune_cli(*words, "-q", "-v")
    assert both.code == 2 and "opposites" in both.err


def test_every_command_that_draws_takes_both() -> None:
    drawing = []
    for words in commands():
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        flags = {flag for param in command.params for flag in param.opts}
        assert ("--quiet" in flags) == ("--verbose" in flags), words
        drawing += [" ".join(words)] * ("--quiet" in flags)
    one = "check compare doctor ensemble eval export find-lr plan predict run shard soup tune"
    assert sorted(drawing) == sorted([*one.split(), "backbones fetch", "backbones rank"])
