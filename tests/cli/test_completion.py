"""The shell completes names of backbones, strategies, recipes, runs and keys, without torch and in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import completion
from finetune.cli.completion import COMPLETIONS
from finetune.values import STRATEGY_NAMES

PEEK = (
    "import sys; sys.argv = ['finetune']\n"
    "from finetune.cli import main\n"
    "try: main()\n"
    "finally: print([m for m in ('torch', 'timm', 'numpy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folders here and in runs/: finished, stopped, an ensemble, and a folder that is none."""
    for name, file in (
        ("runs/done", "metrics.json"),
        ("runs/stopped", "asked.toml"),
        ("runs/both", "ensemble.json"),
        ("runs/other", "notes.txt"),
        ("here", "metrics.json"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_completed() -> None:
    assert "resnet18" in completion.complete_backbone("resnet1")
    assert completion.complete_backbone("resnet18.t") == ["resnet18.tv_in1k"]
    assert completion.complete_family("resnets") == []
    assert "resnet" in completion.complete_family("res")
    assert completion.complete_licence("apache") == ["apache-2.0"]
    assert completion.complete_strategy("") == list(STRATEGY_NAMES)
    assert completion.complete_recipe("head") == ["head-only"]
    assert COMPLETIONS["among"]("embedded,resnet18.t") == ["embedded,resnet18.tv_in1k"]


def test_runs_are_completed_by_what_can_be_done_with_them(folders: Path) -> None:
    assert completion.complete_run("") == ["here", "runs/both", "runs/done"]
    assert completion.complete_run("ru") == ["runs/both", "runs/done"]
    assert completion.complete_run("runs/d") == ["runs/done"]
    assert completion.complete_run(f"{folders}/runs/d") == [f"{folders}/runs/done"]
    assert completion.complete_unfinished("") == ["runs/stopped"]
    assert completion.complete_any_run("runs/") == ["runs/both", "runs/done", "runs/stopped"]
    assert completion.complete_run("nowhere/") == completion.complete_run("other") == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optim.lr", ["optim.lr"]),
        ("optim.name=ada", ["optim.name=adamw", "optim.name=adam", "optim.name=adagrad", "optim.name=adadelta"]),
        ("train.refit=", ["train.refit=true", "train.refit=false"]),
        ("augment.level=me", ["augment.level=medium"]),
        ("optim.lr=0.0", []),
        ("no.such=", []),
    ],
)
def test_keys_and_their_values_are_completed(typed: str, expected: list[str]) -> None:
    assert sorted(completion.complete_key(typed)) == sorted(expected)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("finetune run --backbone resnet1", "resnet18"),
        ("finetune plan --backbone resnet18.t", "resnet18.tv_in1k"),
        ("finetune backbones show mobilenetv4_conv_sm", "mobilenetv4_conv_small"),
        ("finetune backbones sh", "show"),
        ("finetune run --strategy lin", "linear-probe"),
        ("finetune compare --strategies head-only,to", "head-only,top-k"),
        ("finetune run --set optim.mom", "optim.momentum"),
        ("finetune recipes show head", "head-only"),
        ("finetune eval runs/d", "runs/done"),
        ("finetune run --resume ru", "runs/stopped"),
        ("finetune runs rm runs/st", "runs/stopped"),
    ],
)
def test_the_shell_completes_without_torch(typed: str, name: str, folders: Path) -> None:
    variables = {
        **os.environ,
        "_FINETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run([sys.executable, "-c", PEEK], capture_output=True, text=True, env=variables, cwd=folders)
    assert name in done.stdout.split()
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes_what_is_typed(folders: Path) -> None:
    """In a terminal of its own: what stands behind the tabulator comes from the command that is completed."""
    place = folders / "bin"
    place.mkdir()
    command = place / "finetune"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{PEEK.splitlines()[1]}; main()" "$@"\n')
    command.chmod(0o755)
    root = str(Path(completion.__file__).parents[2])
    own = {"PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": root, "PS1": "> ", "TERM": "dumb"}
    ours, theirs = pty.openpty()
    words = ["bash", "--noprofile", "--norc", "-i"]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **own}, cwd=folders
    )

    def typed(text: str, until: str) -> None:
        os.write(ours, text.encode())
        shown = ""
        while until not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4096).decode()

    try:
        typed('eval "$(_FINETUNE_COMPLETE=source_bash finetune)"; echo so"urced"\n', "sourced")
        for begun, whole in (
            ("finetune run --strategy lin", "linear-probe "),
            ("finetune eval runs/do", "runs/done "),
            ("finetune run --set optim.momentum_f", "optim.momentum_from "),
        ):
            typed(f"{begun}\t", whole)
            typed("\x15", "")  # the line is thrown away
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
