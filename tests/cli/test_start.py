"""What a command does in its first moments: refuse what it can without torch, and say that it is starting."""

from __future__ import annotations

import ast
import os
import pty
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from finetune.cli import SPINS
from finetune.prepare import costs
from finetune.workflow.plan import plan

# Each command in a fork of one process, which has read what any command reads.
FORKS = """
import os, sys
import finetune.cli.app, finetune.recipe
from finetune.cli import main
for number, words in enumerate(sys.argv[1:]):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["finetune", *words.split()]
        try:
            main()
        except SystemExit as end:
            print(end.code)
            print([name for name in ("torch", "timm") if name in sys.modules], flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


def test_what_needs_no_torch_is_refused_without_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    commands = [
        "run --data NOWHERE",
        "run IMAGES --set loss.focal_gamma=2",
        "run IMAGES --set train.epoch=2",
        "run IMAGES --top-k 2 --strategy full",
        "run --resume NOWHERE",
        "run",
        "plan",
        "plan --data NOWHERE",
        "check NOWHERE --quick",
        "compare --data NOWHERE",
        "backbones rank --data NOWHERE",
        "eval NOWHERE",
        "export NOWHERE",
        "predict NOWHERE x.jpg",
    ]
    asked = [one.replace("NOWHERE", f"{tmp_path}/nowhere").replace("IMAGES", f"{tmp_path}/images") for one in commands]
    subprocess.run([sys.executable, "-c", FORKS, *asked], check=True, cwd=tmp_path)
    for number, words in enumerate(commands):
        out, err = ((tmp_path / f"{number}.{name}").read_text() for name in ("out", "err"))
        exit_code, libraries = out.splitlines()[-2:]
        assert int(exit_code) > 0 and libraries == "[]", (words, out, err)
        assert err.startswith("error: "), (words, err)


def test_a_terminal_is_not_left_blank_while_libraries_are_read(tmp_path: Path) -> None:
    """The word comes before torch is there: the process that says it stops at the import."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "finetune", "plan", "--strategy", "full", "--backbone", "test_resnet"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        shown = b""
        while b"starting" not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_a_network_is_timed_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    seconds = costs._seconds
    monkeypatch.setattr(costs, "_seconds", lambda act, device: timed.append(1) or seconds(act, device))
    first, again = (plan(strategy="full", backbone="test_resnet") for _ in range(2))
    assert len(timed) == 2  # forward, and a step
    assert [cost.seconds for cost in first.costs] == [cost.seconds for cost in again.costs]
    plan(strategy="full", backbone="test_resnet", image_size=96)
    assert len(timed) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP library is another there")
@pytest.mark.parametrize(
    "said, spins", [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_sleep_soon_where_they_wait_unless_the_user_says_otherwise(said: dict[str, str], spins: str) -> None:
    """The library of torch's threads says what it has read."""
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "doctor"],
        capture_output=True, text=True, env={**others, "OMP_DISPLAY_ENV": "verbose", **said},
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_nothing_but_the_words_of_a_module_is_read_before_main_begins() -> None:
    """What comes before cannot be stopped by Ctrl-C without a traceback."""
    code = "import sys; before = set(sys.modules); import finetune.cli; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = ast.literal_eval(done.stdout)
    assert {name for name in own if name.startswith("finetune")} == {"finetune", "finetune.cli", "finetune.errors"}
    assert not {"typer", "click", "pydantic", "rich", "importlib.metadata"} & set(own)


@pytest.mark.parametrize("slow", ["pydantic", "typer", "rich"])
def test_ctrl_c_while_libraries_are_read_is_one_word_and_130(tmp_path: Path, slow: str) -> None:
    (tmp_path / f"{slow}.py").write_text("import time\nprint('reading', flush=True)\ntime.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    command = [sys.executable, "-m", "finetune", "run", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a suite in the background has not
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "stopped\n")


@pytest.mark.parametrize("words", ["--help", "recipes show default", "recipes ls", "backbones ls --json", "--version"])
def test_a_reader_that_goes_away_costs_no_word_and_the_usual_code(words: str) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)  # nobody reads, from the first byte on
    done = subprocess.run([sys.executable, "-m", "finetune", *words.split()], stdout=ours, stderr=subprocess.PIPE)
    os.close(ours)
    assert (done.returncode, done.stderr) == (141, b"")
