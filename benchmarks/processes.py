"""What two processes that share a run take, against one, each of one thread, in turns.

    python benchmarks/processes.py DATA --weights FOLDER [--processes 2] [--times 3] [--epochs 4] [--image-size 128]

Strategy full on a real set. Seconds of training by timing.json, start-up left out; the first turn fills the pixel
cache of both and is not counted. Prints a row for each turn with the load before it, and the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Print one row for each turn, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=128)
    asked = parser.parse_args()
    rows: dict[int, list[tuple[float, float, float]]] = {1: [], asked.processes: []}
    with tempfile.TemporaryDirectory() as place:
        os.environ["FINETUNE_CACHE"] = f"{place}/cache"
        _run(asked, 1, Path(place, "first"), epochs=1)
        print("| processes | seconds | val top1 | val loss | load before |\n| --- | --- | --- | --- | --- |")
        for _ in range(asked.times):
            for count, taken in rows.items():
                load = os.getloadavg()[0]
                taken.append(_run(asked, count, Path(place, "run"), epochs=asked.epochs))
                print(
                    f"| {count} | {taken[-1][0]:.1f} | {taken[-1][1]:.4f} | {taken[-1][2]:.6f} | {load:.1f} |",
                    flush=True,
                )
    one, several = (statistics.median(row[0] for row in rows[count]) for count in rows)
    print(f"medians: {one:.1f} s by one, {several:.1f} s by {asked.processes}: {one / several:.2f} times as fast")


def _run(asked: argparse.Namespace, count: int, out: Path, *, epochs: int) -> tuple[float, float, float]:
    """Train, and return the seconds of training with top1 and loss on val after the last epoch."""
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    words = [
        "run", str(asked.data), "--weights", str(asked.weights), "--strategy", "full", "--epochs", str(epochs),
        "--image-size", str(asked.image_size), "--batch-size", "32", "--workers", "0", "--threads", "1",
        "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    subprocess.run([sys.executable, *launcher, "-m", "finetune", *words], check=True, capture_output=True)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return json.loads((out / "timing.json").read_text())["seconds"]["train"], last["val_top1"], last["val_loss"]


if __name__ == "__main__":
    main()
