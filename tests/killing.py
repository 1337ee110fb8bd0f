"""Runs in a forked process that dies, or finds the disk full, at a chosen point of writing."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import finetune
from finetune.backbone import folder as timm_folder
from finetune.checkpoint import state
from finetune.errors import FinetuneError

WRITING = os.O_WRONLY | os.O_RDWR
MOVES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
FOLDERS = ("os.mkdir", "os.remove", "os.rmdir")  # the slow tests stop there too
FREEING = {"os.remove", "os.rmdir"}  # a full disk does not stop them
HALF = b"half of it"

# The first backward pass of a process settles whether autograd has threads, after which no fork can compute gradients.
# On a CPU it has none, but a FakeTensorMode of another test that came before it would look like a GPU.
torch.ones((), requires_grad=True).backward()

At = Callable[[int, str], bool]  # of a point's number, from 1 on, and its label, e.g. "os.rename checkpoints/last"


@dataclass(frozen=True)
class Ended:
    """How a forked process ended: its signal, its exit code, what it said, the points of writing it passed."""

    signal: int
    code: int
    said: str
    points: list[str]


def forked(work: Callable[[], Any], at: At = lambda *_: False, *, is_full: bool = False) -> Ended:
    """Run `work` in a fork of this process; every file opened for writing and every rename is a point.

    At the first point that `at` holds for, the process is killed with half of the file written; with
    `is_full` the disk is full instead, from there on. An exception that is none of ours is exit code 99.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            _Watch(at, is_full, lambda label: print("point", label, file=pipe, flush=True)).begin()
            try:
                work()
                code = 0
            except FinetuneError as error:
                print(f"error: {error.message}\nhint: {error.hint}", file=pipe)
                code = error.exit_code
            except BaseException:
                print(traceback.format_exc(), file=pipe)
                code = 99
            pipe.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    points = [line.removeprefix("point ") for line in lines if line.startswith("point ")]
    said = "\n".join(line for line in lines if not line.startswith("point "))
    is_killed = os.WIFSIGNALED(status)
    return Ended(os.WTERMSIG(status) if is_killed else 0, -1 if is_killed else os.WEXITSTATUS(status), said, points)


class _Watch:
    """Hooks into everything that opens for writing or renames; hooks stay for good, hence the fork."""

    def __init__(self, at: At, is_full: bool, tell: Callable[[str], None]) -> None:
        self.at, self.is_full, self.tell = at, is_full, tell
        self.passed, self.is_reached, self.is_inside = 0, False, False

    def begin(self) -> None:
        for module in (state, timm_folder):
            module.save_file = self._saving(module.save_file)
        sys.addaudithook(self._hook)

    def _reaches(self, event: str, path: str) -> bool:
        place = Path(path)
        folder = re.sub("^[0-9a-f]{32}$", "entry", place.parent.name)
        name = re.sub(
            r"(?<=[.-])([0-9a-f]{32}|[0-9]{3,})(?=\.|$)", "N", place.name
        )  # of a process, or drawn by the lock
        label = f"{event} {folder}/{name}"
        self.passed += 1
        self.tell(label)
        self.is_reached = self.at(self.passed, label) or (self.is_full and self.is_reached)
        return self.is_reached

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.is_inside or not (event in MOVES or (event == "open" and _writes(*args))):
            return
        path = os.fsdecode(args[1] if event == "os.rename" else args[0])
        if event == "os.mkdir" and Path(path).exists():
            return
        self.is_inside = True
        try:
            if self._reaches(event, path):
                self._end(path if event == "open" else None, is_freeing=event in FREEING)
        finally:
            self.is_inside = False

    def _end(self, file: str | None, *, is_freeing: bool) -> None:
        if not self.is_full:
            if file and not file.endswith("lock") and not Path(file).is_dir():  # a file without a name: O_TMPFILE
                _write_half(file)
            os.kill(os.getpid(), signal.SIGKILL)
        if not is_freeing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    def _saving(self, whole: Callable[..., None]) -> Callable[..., None]:
        """safetensors writes by itself: no hook sees it."""

        def save_file(tensors: Any, path: Path) -> None:
            if self._reaches("save", str(path)):
                _write_half(str(path))
                if self.is_full:
                    raise SafetensorError("Error while serializing: No space left on device (os error 28)")
                os.kill(os.getpid(), signal.SIGKILL)
            whole(tensors, path)

        return save_file


def _writes(path: object, _: object, flags: int | None) -> bool:
    """Tell whether a file is opened for writing; a finished file that is only flushed is not."""
    if not isinstance(path, (str, bytes)) or not (flags or 0) & WRITING:
        return False
    place = Path(os.fsdecode(path))
    is_flushed = place.parent.name.endswith(".new") and not (flags or 0) & os.O_CREAT
    return not is_flushed and place.parts[1] != "dev" and place.suffix != ".sqlite"


def _write_half(path: str) -> None:
    with open(path, "ab") as stream:  # noqa: PTH123
        stream.write(HALF)


def again(begin: Callable[[], object], out: Path, go_on: Callable[[Path], object] = finetune.resume) -> None:
    """Do what the tool says: resume, or give the same command again where nothing had been written."""
    if not out.exists() or not any(out.iterdir()):
        begin()
        return
    try:
        go_on(out)
    except finetune.CheckpointError as error:
        if "is finished" in error.message:  # killed behind its last word
            return
        if "wrote anything" not in error.message:
            raise
        begin()


def die_everywhere(
    begin: Callable[[], object],
    out: Path,
    *,
    is_full: bool = False,
    spared: tuple[str, ...] = (),
    limit: int = 200,
    go_on: Callable[[Path], object] = finetune.resume,
) -> list[Ended]:
    """Start a run, end it at the first point where it has not ended yet, go on, until it comes to its end."""

    def is_new(label: str) -> bool:
        return label not in seen and not label.startswith(spared)

    seen: set[str] = set()
    found: list[Ended] = []
    work = begin
    while len(found) < limit:
        ended = forked(work, lambda _, label: is_new(label), is_full=is_full)
        if ended.code == 0 and not any(map(is_new, ended.points)):
            return found
        found.append(ended)
        assert any(map(is_new, ended.points)), ended
        seen.add(next(filter(is_new, ended.points)))
        work = lambda: again(begin, out, go_on)  # noqa: E731
    raise AssertionError(f"still not at its end after {limit} times, last at {found[-1].points[-1]}")
