"""Kills runs with SIGKILL at random moments, resumes them, and compares them bit for bit with runs left alone.

    python tools/kill.py [--times 100] [--seed 0] [--place FOLDER] [--processes 1] [--shards]

Several recipes in turn; each run is a process of its own, killed one to three times between its first
line and its last, then resumed to its end. Moments are drawn from the seed over the whole time that the
same run takes when left alone. With --processes 2 each run is shared by two, of which one is killed, by chance; with
--shards the images lie in tar shards.
Ends with "100 of 100 exact" and exit code 0, or keeps what differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import finetune
from finetune.data.sample import write_sample

OTHER = ("timing.json", "environment.json", "report.html", ".lock")  # tell of the last process, or of seconds
BEFORE = "last.before"  # the checkpoint before the last one: which that is depends on seconds too
DRIVER = "import finetune.runs.single, finetune.cli as cli; print('ready', flush=True); cli.main()"
SHARD = 50_000  # bytes of one
LINGER = 60.0  # seconds after which what still runs beside a killed process is killed, too
EVERY_STEP = "train.checkpoint_every=0.000001"
RECIPES: dict[str, tuple[str, ...]] = {
    "full, sgd, a checkpoint a step, patience 4": (
        "--backbone", "lenet5", "--strategy", "full", "--epochs", "40", "--set", EVERY_STEP, "--set", "optim.name=sgd",
        "--set", "train.patience=4",
    ),
    "gradual, in micro-batches": (
        "--backbone", "test_resnet", "--strategy", "gradual", "--epochs", "8", "--micro-batch", "3",
        "--set", EVERY_STEP, "--set", "train.patience=1",
    ),
    "head-only, embedded, cached views": (
        "--backbone", "embedded", "--pretrained", "--strategy", "head-only", "--epochs", "30", "--set", "cache.views=3",
    ),
    "lp-ft, drop path, test split": (
        "--backbone", "test_vit", "--strategy", "lp-ft", "--epochs", "10", "--test", "0.2", "--set", EVERY_STEP,
        "--set", "backbone.model_args={drop_path_rate=0.3}",
    ),
    "linear-probe at an inner layer group": (
        "--backbone", "test_resnet", "--strategy", "linear-probe", "--probe-at", "layer2",
    ),
    "top-k, reinit, workers, no cache": (
        "--backbone", "test_convnext", "--strategy", "top-k", "--top-k", "2", "--reinit", "--epochs", "4",
        "--workers", "2", "--set", "cache.features=none", "--set", EVERY_STEP,
    ),
    "linear-probe at all stages": ("--backbone", "test_resnet", "--strategy", "linear-probe", "--probe-at", "all"),
    "lp-ft on the top layers, refitted": (
        "--backbone", "test_resnet", "--strategy", "lp-ft", "--top-k", "2", "--epochs", "4", "--refit",
        "--set", EVERY_STEP,
    ),
    "auto": ("--backbone", "test_resnet", "--epochs", "6", "--set", "augment.color_jitter=0.3"),
}  # fmt: skip
TINY = (
    "--no-pretrained", "--image-size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu",
    "--set", "export.onnx_at_end=false",  # auto leaves one by how long a run took
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One run: its flags, its folder, a cache of its own, and how many processes share it."""

    flags: tuple[str, ...]
    out: Path
    cache: Path
    num_processes: int = 1

    def begin(self) -> list[str]:
        return ["run", *self.flags, "--out", str(self.out)]

    def again(self) -> list[str]:
        """Return what a user would type next: resume, or the same command where nothing had been written."""
        has_begun = (self.out / "recipe.toml").is_file() or (self.out / "asked.toml").is_file()
        return ["run", "--resume", str(self.out)] if has_begun else self.begin()


def start(place: Place, words: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start `finetune WORDS...` and return its processes once everything is imported."""
    environment = {**os.environ, "FINETUNE_CACHE": str(place.cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (place.out.parent / "said.txt").open("a") as said:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, *words],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**environment, **launch},
            )
            for launch in _launches(place.num_processes)
        ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    return processes


def _launches(count: int) -> list[dict[str, str]]:
    """Return what a launcher tells each of so many processes; nothing where there is one."""
    if count == 1:
        return [{}]
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        port = str(there.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]


def finish(place: Place, words: Sequence[str]) -> float:
    """Run `finetune WORDS...` to its end and return its seconds, imports left out."""
    processes, began = start(place, words), time.monotonic()
    for process in processes:
        process.communicate()
    if any(process.returncode for process in processes):
        said = (place.out.parent / "said.txt").read_text()
        codes = ", ".join(str(process.returncode) for process in processes)
        raise SystemExit(f"finetune {' '.join(words)} ended with {codes}:\n{said[-2000:]}")
    return time.monotonic() - began


def kill_after(place: Place, words: Sequence[str], seconds: float, victim: int = 0) -> bool:
    """Run `finetune WORDS...` and kill one of its processes after so many seconds; tell whether it was still alive.

    The others end by themselves, or, where they still wait for each other to come, as a launcher would have it.
    """
    processes = start(place, words)
    chosen = processes[victim]
    try:
        chosen.wait(timeout=seconds)
        is_killed = False
    except subprocess.TimeoutExpired:
        chosen.kill()
        is_killed = True
    for process in processes:
        try:
            process.communicate(timeout=LINGER)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    return is_killed


def stage(place: Place) -> str:
    """Say how far a killed run had come."""
    if not (place.out / "recipe.toml").is_file():
        return "preparing"
    if (place.out / "model").exists():
        return "at the report"
    try:
        state = json.loads((place.out / "checkpoints" / "last" / "state.json").read_text())
    except OSError:
        return "before a checkpoint"
    return f"phase {state['phase'] + 1}, {len(state['history'])} epochs"


def differences(whole: Path, resumed: Path) -> list[str]:
    """Name the files that differ, that only one of both has, and what is half-written."""
    own, other = _files(whole), _files(resumed)
    return sorted(name for name in own | other if own.get(name) != other.get(name))


def _files(run: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a run that counts, its refit's too, by its path; none for a folder."""
    every = {path.relative_to(run): path for path in run.rglob("*")}
    return {
        place.as_posix(): path.read_bytes() if path.is_file() else b""
        for place, path in every.items()
        if place.as_posix() not in OTHER and BEFORE not in place.parts
    }


def attempt(place: Place, whole: Path, seconds: float, draw: random.Random) -> tuple[list[str], list[str]]:
    """Kill a run one to three times, let it end, and yield where it was killed and what differs."""
    kills: list[str] = []
    wanted = draw.choice((1, 1, 2, 3))
    while len(kills) < wanted:
        moment = draw.uniform(0, seconds)
        victim = draw.randrange(place.num_processes) if place.num_processes > 1 else 0
        if kill_after(place, place.again(), moment, victim):
            which = f"process {victim} " if place.num_processes > 1 else ""
            kills.append(f"{which}at {moment:.2f} s ({stage(place)})")
        elif kills:
            break
        else:  # it was quicker than the one left alone
            shutil.rmtree(place.out)
            shutil.rmtree(place.cache)
    if not (place.out / "metrics.json").is_file():
        finish(place, place.again())
    return kills, differences(whole, place.out)


def main() -> None:
    """Kill, resume, compare, and say how many are exact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="runs to kill (100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--place", type=Path, help="folder to work in (a temporary one)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share each run (1)")
    parser.add_argument("--shards", action="store_true", help="the images lie in tar shards")
    asked = parser.parse_args()
    root = asked.place or Path(tempfile.mkdtemp(prefix="kill-"))
    data, draw = str(root / "imgs"), random.Random(asked.seed)
    write_sample(root / "imgs", per_class=8)
    if asked.shards:
        data = f"wds:{finetune.shard(data, out=root / 'shards', size=SHARD).folder}"
    names = list(RECIPES)[: asked.times]
    wholes: dict[str, tuple[Path, float]] = {}
    for number, name in enumerate(names):
        place = _place(root / f"whole-{number}", name, data, asked.processes)
        wholes[name] = place.out, finish(place, place.begin())
        print(f"left alone {wholes[name][1]:5.1f} s  {name}", flush=True)
    exact = killed = 0
    for number in range(asked.times):
        name = names[number % len(names)]
        place = _place(root / f"killed-{number}", name, data, asked.processes)
        kills, found = attempt(place, *wholes[name], draw)
        exact, killed = exact + (not found), killed + len(kills)
        print(f"{number + 1:>4}  {'exact' if not found else 'DIFFERS: ' + ', '.join(found)}  {name}")
        print("".join(f"      killed {kill}\n" for kill in kills), end="", flush=True)
        if not found:
            shutil.rmtree(place.out.parent)
    print(f"{exact} of {asked.times} exact, after {killed} kills")
    if exact == asked.times:
        shutil.rmtree(root)
    else:
        raise SystemExit(f"what differs is kept in {root}")


def _place(folder: Path, name: str, data: str, num_processes: int) -> Place:
    folder.mkdir(parents=True)
    return Place(("--data", data, *TINY, *RECIPES[name]), folder / "run", folder / "cache", num_processes)


if __name__ == "__main__":
    main()
