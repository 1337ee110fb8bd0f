"""What deciding costs: `finetune run` with auto against the strategy that auto picks, named; caches of their own.

    python benchmarks/strategy/cost.py --data imgs more --weights FOLDER [--image-size 128] [--times 3]

Both are whole processes, in turns, on the same images. CPU seconds (children included) are told beside
wall seconds, since they are what a busy machine shares out. One line of JSON for each data set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(flags: list[str], place: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of `finetune run FLAGS...` with empty caches."""
    words = [sys.executable, "-m", "finetune", "run", *flags, "--out", str(place / "run")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    environment = {**os.environ, "FINETUNE_CACHE": str(place / "cache")}
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def picked(verdict: dict[str, Any]) -> list[str]:
    """Return the flags that name what a verdict says."""
    flags = ["--strategy", verdict["strategy"]]
    flags += ["--top-k", str(verdict["top_k"])] if verdict["top_k"] else []
    return flags + (["--probe-at", verdict["probe_at"]] if verdict["probe_at"] else [])


def main() -> None:
    """Print a line for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", help="a timm folder (the embedded backbone)")
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    source = ["--weights", asked.weights] if asked.weights else ["--backbone", "embedded"]
    for data in asked.data:
        common = ["--data", str(data), *source, "--image-size", asked.image_size]
        took: dict[str, list[tuple[float, float]]] = {"auto": [], "named": []}
        flags: list[str] = []
        for _ in range(asked.times):
            with tempfile.TemporaryDirectory() as place:
                took["auto"].append(run([*common, "--strategy", "auto"], Path(place)))
                flags = picked(json.loads(Path(place, "run", "evidence.json").read_text())["verdict"])
            with tempfile.TemporaryDirectory() as place:
                took["named"].append(run([*common, *flags], Path(place)))
        medians = {name: [statistics.median(x) for x in zip(*pairs, strict=True)] for name, pairs in took.items()}
        ratios = [a / b for a, b in zip(medians["auto"], medians["named"], strict=True)]
        row = {"data": data.name, "picked": " ".join(flags[1:]), "wall_ratio": ratios[0], "cpu_ratio": ratios[1]}
        print(json.dumps({**row, "seconds_auto": medians["auto"], "seconds_named": medians["named"]}), flush=True)


if __name__ == "__main__":
    main()
