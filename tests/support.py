"""What several test modules share: quick settings, tiny networks, files to read, what a run tells, what two have alike.

`tests/corpus.py` has bad and odd images, `tests/killing.py` runs that are killed at a chosen point of writing.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import typer
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.backbone import folder as timm_folder
from finetune.cli.app import app
from finetune.data import checks, sources
from finetune.features import sources as trunk_passes
from finetune.features.ridge import loo_guesses
from finetune.features.sources import run_trunk
from finetune.prepare import prepared
from finetune.types import Event, Interval, Manifest, Preprocessing, Verdict
from finetune.workflow.check import Check

ROOT = Path(__file__).parents[1]
LAYOUTS = ["test_resnet", "test_vit", "test_convnext"]  # batch norm, tokens, layer norm
QUICK = {"image_size": 64, "batch_size": 16, "workers": 0, "device": "cpu", "pretrained": False}
TINY = {"backbone": "lenet5", "pretrained": False, "image_size": 32, "batch_size": 8, "workers": 0, "device": "cpu"}
FLAGS = ("--backbone", "test_resnet", "--no-pretrained", "--image-size", "32", "--device", "cpu", "--workers", "0")
CLASSICS = {
    "lenet5": 32,
    "alexnet": 64,
    "zfnet": 64,
    "googlenet": 32,
    "inception_v2": 32,
    "resnet32": 32,
}  # image sizes
EVERY_STEP = {"train.checkpoint_every": 1e-9}
# What the same run ends with, whatever came between.
SAME = ("model/model.safetensors", "checkpoints/best/model.safetensors", "metrics.jsonl", "metrics.json")
ODD_BYTES = st.sampled_from([b"\0", b"\xff", b'"', b"\n", b",", b"[", b"{", b"=", b"-1", b"1e999", b"null", b"../"])


def mostly_slow(cases: Iterable[tuple[Any, ...]], *quick: tuple[Any, ...]) -> list[Any]:
    """Return the cases of a table, all but the quick ones marked slow; each of these has to be among them."""
    whole = list(cases)
    assert quick and all(case in whole for case in quick), quick
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in whole]


@cache
def program() -> Any:
    """Return the tool's command line, as click has it."""
    return typer.main.get_command(app)


def commands() -> list[tuple[str, ...]]:
    """Return the words of every command of the tool, groups of commands included."""

    def below(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
        for name, child in getattr(command, "commands", {}).items():
            yield (*words, name)
            yield from below(child, *words, name)

    return list(below(program()))


def command_of(words: Iterable[str]) -> tuple[Any, list[str]]:
    """Return the command that words behind `finetune` name, and what is left of them: its flags and arguments."""
    found, left = program(), list(words)
    while left and left[0] in getattr(found, "commands", {}):
        found = found.commands[left.pop(0)]
    return found, left


def parsed(line: str) -> dict[str, Any]:
    """See that a line is a command with flags and arguments that it takes, and return these; nothing is run."""
    first, *words = shlex.split(line.split("<")[0])
    assert first == "finetune", line
    found, left = command_of(words)
    with found.make_context(line, left) as context:
        return dict(context.params)


def random_folders(place: Path, names: Iterable[str], *, side: int) -> Path:
    """Write a timm folder of each network for images of a side, its weights at random, each from a seed of its own."""
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        arguments = {"img_size": side} if name == "test_vit" else {}
        timm_folder.write(
            timm.create_model(name, num_classes=2, **arguments),
            place / name,
            architecture=name,
            model_args=arguments,
            preprocessing=Preprocessing((side, side), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            classes=("a", "b"),
            pretrained_cfg={},
        )
    return place


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a program of `tools/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses ask for it
    spec.loader.exec_module(module)
    return module


def network(name: str = "test_resnet", *, num_classes: int = 4, seed: int = 0, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)


def on_meta(name: str, **arguments: object) -> nn.Module:
    """Return a network without numbers: its shapes alone."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **arguments)


class Branching(nn.Module):
    """A network whose path depends on the values in the images: no trace can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).mean(dim=(2, 3))
        return self.head(features if features.sum() > 0 else -features)


def random_images(count: int, side: int, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_states() -> tuple[object, ...]:
    """Return the states of the generators that a whole process shares."""
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().numpy().tobytes()


PATCHES = {"blue": (40, 60, 230), "green": (40, 220, 60), "red": (230, 50, 40)}


def draw_sets(folder: Path, *, count: int = 48, seed: int = 0) -> Path:
    """Draw grey images with a patch of each colour that is among their classes, some with none; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(seed), ["image,label,blue,green,red"]
    for number in range(count):
        pixels = rng.integers(90, 160, (40, 48, 3)).astype(np.uint8)
        has = [name for name in PATCHES if rng.random() < 0.45]
        for name in has:
            top, left = rng.integers(0, 24), rng.integers(0, 32)
            pixels[top : top + 14, left : left + 14] = PATCHES[name]
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        rows.append(f"{number:03}.png,{'|'.join(has)},{','.join(str(int(name in has)) for name in PATCHES)}")
    (folder / "sets.csv").write_text("\n".join(rows) + "\n")
    return folder / "sets.csv"


def draw_numbers(folder: Path, *, count: int = 48, seed: int = 0) -> Path:
    """Draw grey images with a red bar whose length is their number, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(seed), ["image,length"]
    for number in range(count):
        pixels = rng.integers(90, 160, (40, 48, 3)).astype(np.uint8)
        length = int(rng.integers(2, 47))
        top = rng.integers(0, 30)
        pixels[top : top + 10, :length] = PATCHES["red"]
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        rows.append(f"{number:03}.png,{100 + length * 2.5}")
    (folder / "numbers.csv").write_text("\n".join(rows) + "\n")
    return folder / "numbers.csv"


def lay(root: Path, names: Iterable[str]) -> Path:
    """Lay empty files of these names, where no reader opens one."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def scanned(root: Path, **options: Any) -> Manifest:
    return checks.scan(sources.read(root), **options)


def watch_reading(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Path]:
    """Return a list that the files come into which a module reads."""
    files: list[Path] = []
    original = module.read_content
    monkeypatch.setattr(module, "read_content", lambda file: files.append(file) or original(file))
    return files


def watch_trunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of how many images trunks run on, batch by batch, to fill the feature cache."""
    counts: list[int] = []

    def counted(trunk: nn.Module, images: Tensor, **more: Any) -> Any:
        counts.append(len(images))
        return run_trunk(trunk, images, **more)

    monkeypatch.setattr(trunk_passes, "run_trunk", counted)
    return counts


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with some bytes changed, taken out, put in, repeated or cut off."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.binary(max_size=6), ODD_BYTES, st.just(content[start:end] * 2), st.just(b"")))
        content = content[:start] + middle + (b"" if draw(st.integers(0, 9)) == 0 else content[end:])
    return content


def decide(monkeypatch: pytest.MonkeyPatch, size: str, similarity: str, strategy: str, **more: Any) -> None:
    """Let the verdict on whatever is measured be this one."""
    sure = Interval(1.0, 0.9, 1.1)
    verdict = Verdict(size, similarity, strategy, "so it was decided", sure, sure, **more)
    monkeypatch.setattr(prepared, "decide", lambda *_, **__: verdict)


def cases_of(found: Check, kind: str) -> list[tuple[str, list[str]]]:
    """Return the note and the files of every case that a check found of a kind."""
    return [
        (case.note, [one.file for one in case.files])
        for finding in found.findings
        if finding.kind == kind
        for case in finding.cases
    ]


def last_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def warned(act: Callable[..., Any], *arguments: Any, **more: Any) -> tuple[Any, list[str]]:
    """Return what a function returns, and the warnings that it tells of on the way."""
    texts: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "warning":
            texts.append(event.facts["text"])

    return act(*arguments, on_event=note, **more), texts


def stop_after(steps: int, number: signal.Signals = signal.SIGTERM) -> Callable[[Event], None]:
    """Return an `on_event` that sends this process a signal at the given step."""
    seen = 0

    def on_event(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "step"
        if event.kind == "step" and seen == steps:
            os.kill(os.getpid(), number)

    return on_event


def assert_same(whole: Path, resumed: Path, names: Iterable[str] = SAME) -> None:
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def unfinished_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def loo_ridge(features: Tensor, targets: Tensor, **more: Any) -> float:
    """Return the leave-one-out top1 of a ridge classifier on features (N, D)."""
    return float((loo_guesses(features, targets, **more) == targets).double().mean())
