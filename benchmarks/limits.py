"""head-only against the physical limit of its job, a second run against the first, and its memory.

    python benchmarks/limits.py --data imgs --weights FOLDER [--image-size 160] [--epochs 30]

The limits: every file decoded once, and one forward pass of the backbone for each view that the run keeps,
nothing else, on the same threads; by torch, and by onnxruntime, several batches at once. Start-up, export and
report are left out of the runs. Memory is the peak of a process of its own: a head-only run, and an evaluation
of what it made.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path

import torch
from peers import Watch

import finetune
from finetune import cache_entries
from finetune.backbone.load import architecture, load
from finetune.cli.app import app
from finetune.data import sources
from finetune.device import in_fast_layout
from finetune.features.divide import network_trunk
from finetune.features.engines import equip
from finetune.features.sources import through_trunk, trunk_batch
from finetune.images.decode import read_rgb
from finetune.images.transforms import picture_side
from finetune.prepare.batches import AUTO_VIEWS

CPU = torch.device("cpu")


def physical(data: Path, weights: Path, *, size: int) -> dict[str, float]:
    """Return the seconds of decoding every file once and running every view of it forward, by each engine."""
    backbone = load(architecture("auto", weights=weights), num_classes=2, image_size=size)
    in_fast_layout(backbone.model, CPU)
    manifest = sources.read(data)
    files = [Path(manifest.root, sample.file) for sample in manifest.samples]
    began = time.monotonic()
    _decode(files, side=picture_side(backbone.preprocessing))
    decoding = time.monotonic() - began
    trunk, images = network_trunk(backbone.model), torch.rand(trunk_batch(CPU), 3, size, size)
    num_batches = -(-len(files) // len(images)) * AUTO_VIEWS
    seconds = {}
    for engine in ("torch", "onnxruntime"):
        equip(trunk, images, asked=engine, num_images=1, precision="float32", about={})
        began = time.monotonic()
        deque(through_trunk(trunk, repeat(images, num_batches), autocast=nullcontext), maxlen=0)
        seconds[engine] = decoding + time.monotonic() - began
    return seconds


def _decode(files: Sequence[Path], *, side: int) -> None:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        deque(pool.map(lambda file: read_rgb(file, side=side), files), maxlen=0)


def run(data: Path, weights: Path, place: str, out: str, *, size: int, epochs: int) -> float:
    """Return the seconds of a head-only run from the first file read to the last val."""
    watch = Watch()
    finetune.run(
        data, weights=weights, image_size=size, epochs=epochs, strategy="head-only", out=f"{place}/{out}",
        on_event=watch,
        overrides={"train.patience": "none", "cache.folder": place, "train.threads": torch.get_num_threads()},
    )  # fmt: skip
    return watch.seconds


def peak(*words: str) -> float:
    """Return the peak memory of a finetune command in MB."""
    subprocess.run([sys.executable, __file__, "--child", *words], check=True, stdout=subprocess.DEVNULL)
    return float(Path(words[-1]).read_text())


def child(words: list[str]) -> None:
    """Run a finetune command in this process and leave its peak memory in the last word's file."""
    *command, report = words
    sys.argv = ["finetune", *command]
    app(standalone_mode=False)
    Path(report).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Print one table."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=30)
    chosen = parser.parse_args()
    size, epochs = chosen.image_size, chosen.epochs
    with tempfile.TemporaryDirectory() as place:
        limit = physical(chosen.data, chosen.weights, size=size)
        cold = run(chosen.data, chosen.weights, place, "cold", size=size, epochs=epochs)
        warm = run(chosen.data, chosen.weights, place, "warm", size=size, epochs=epochs)
        again = physical(chosen.data, chosen.weights, size=size)
        limits = {engine: (seconds + again[engine]) / 2 for engine, seconds in limit.items()}
        cached = sum(e.num_bytes for e in cache_entries.list_entries(Path(place, "entries"))
                     if e.about.get("kind") == "features") / 2**20  # fmt: skip
        common = ("--data", str(chosen.data), "--weights", str(chosen.weights), "--image-size", str(size))
        _show(chosen, limits, cold, warm)
        held = peak("run", *common, "--strategy", "head-only", "--set", f"cache.folder={place}/memory",
                    "--out", f"{place}/memory-run", f"{place}/run.txt")  # fmt: skip
        judged = peak("eval", f"{place}/memory-run", "--split", "val", f"{place}/eval.txt")
    print(f"peak memory: run {held:.0f} MB, evaluation {judged:.0f} MB, features in the cache {cached:.0f} MB")


def _show(chosen: argparse.Namespace, limits: dict[str, float], cold: float, warm: float) -> None:
    what = f"{chosen.image_size} px, head-only, {chosen.epochs} epochs"
    print(f"{chosen.data.name}, {what}, {torch.get_num_threads()} threads\n")
    print("| what | seconds |" + "".join(f" against the limit by {engine} |" for engine in limits))
    print("| --- | --- |" + " --- |" * len(limits))
    rows = [(f"the limit by {engine}, before and after", seconds) for engine, seconds in limits.items()]
    for name, seconds in (*rows, ("cold", cold), ("warm", warm)):
        print(f"| {name} | {seconds:.1f} |" + "".join(f" {seconds / limit:.2f} |" for limit in limits.values()))
    print(f"\nwarm takes {warm / cold:.1%} of cold", flush=True)


if __name__ == "__main__":
    main()
