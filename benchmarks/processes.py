"""What two processes that share a run take, against one, each of one thread, in turns.

    python benchmarks/processes.py DATA --weights FOLDER [--processes 2] [--times 3] [--epochs 5] [--image-size 128]

Strategy full on a real set. Seconds of training by timing.json, start-up left out, and CPU seconds of all processes,
which a busy machine leaves as they are: those of a run less those of one with a single epoch. The first turn fills
the pixel cache and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Turn(NamedTuple):
    """Seconds of training, CPU seconds of all processes, and what the last epoch reached on val."""

    seconds: float
    cpu: float
    top1: float
    loss: float


def main() -> None:
    """Print one row for each turn, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=128)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["FINETUNE_CACHE"] = f"{place}/cache"
        out, counts = Path(place, "run"), (1, asked.processes)
        _run(asked, 1, out, epochs=1)
        short = {count: _run(asked, count, out, epochs=1).cpu for count in counts}
        turns: dict[int, list[Turn]] = {count: [] for count in counts}
        print("| processes | seconds | CPU seconds | val top1 | val loss | load before |\n|" + " --- |" * 6)
        for _ in range(asked.times):
            for count in counts:
                load = os.getloadavg()[0]
                turn = _run(asked, count, out, epochs=asked.epochs)
                turns[count].append(turn)
                shown = f"{turn.seconds:.1f} | {turn.cpu - short[count]:.1f} | {turn.top1:.4f} | {turn.loss:.6f}"
                print(f"| {count} | {shown} | {load:.1f} |", flush=True)
    one, several = (statistics.median(turn.seconds for turn in turns[count]) for count in counts)
    own, whole = (statistics.median(turn.cpu for turn in turns[count]) - short[count] for count in counts)
    print(f"medians: {one / several:.2f} times as fast; {whole / own:.2f} times the CPU seconds")


def _run(asked: argparse.Namespace, count: int, out: Path, *, epochs: int) -> Turn:
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    words = [
        "run", str(asked.data), "--weights", str(asked.weights), "--strategy", "full", "--epochs", str(epochs),
        "--image-size", str(asked.image_size), "--batch-size", "32", "--workers", "0", "--threads", "1",
        "--device", "cpu", "--out", str(out), "--set", "export.onnx_at_end=false",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *launcher, "-m", "finetune", *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = json.loads((out / "timing.json").read_text())["seconds"]["train"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Turn(seconds, cpu, last["val_top1"], last["val_loss"])


if __name__ == "__main__":
    main()
