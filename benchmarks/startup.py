"""What commands take from the shell to their answer, against importing torch and timm alone.

    python benchmarks/startup.py [--times 3]

A small drawn set, a tiny run with an ONNX export and its twin without one; whole processes, in turns, medians.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import finetune
from finetune.data.sample import write_sample

IMPORTS = "import torch, timm"


def main() -> None:
    """Print one row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(times):
            for name, words in commands.items():
                taken[name].append(_seconds(words))
    base = statistics.median(wall for wall, _ in taken[IMPORTS])
    print("| command | seconds | CPU seconds | of the imports |\n| --- | --- | --- | --- |")
    for name, rows in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| `{name}` | {wall:.2f} | {cpu:.2f} | {wall / base:.2f} |")


def _commands(folder: Path) -> dict[str, list[str]]:
    images = folder / "imgs"
    write_sample(images, per_class=10)
    plain = finetune.run(images, strategy="head-only", backbone="embedded", epochs=1, out=folder / "plain").folder
    exported = Path(shutil.copytree(plain, folder / "exported"))
    finetune.export(exported)
    image = str(next(images.rglob("*.jpg")))
    ours = [sys.executable, "-m", "finetune"]
    return {
        IMPORTS: [sys.executable, "-c", IMPORTS],
        "finetune --help": [*ours, "--help"],
        "finetune run nowhere": [*ours, "run", str(folder / "nowhere")],
        "finetune plan": [*ours, "plan"],
        "finetune plan --strategy full --backbone resnet18": [
            *ours,
            "plan",
            "--strategy",
            "full",
            "--backbone",
            "resnet18",
        ],
        "finetune predict RUN one.jpg, by its export": [*ours, "predict", str(exported), image],
        "finetune predict RUN one.jpg": [*ours, "predict", str(plain), image],
        "finetune eval RUN, 12 images": [*ours, "eval", str(plain)],
    }


def _seconds(words: list[str]) -> tuple[float, float]:
    """Return the wall and the CPU seconds of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, capture_output=True, check=False)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
