"""How the work beside training grows with the data: metrics, evidence, near copies and the split, on what is made up.

    python benchmarks/growth.py [metrics] [evidence] [copies] [split]

Nothing is read or decoded: logits, features, small images and names are drawn, and what is measured is the arithmetic.
Each case runs in a process of its own; the seconds are those of its cores, and the memory is the most that it held
beyond its data (Linux).
Letters: N images, K classes, D features.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data import split
from finetune.data.near_duplicates import copies_of
from finetune.evaluation.metrics import measure
from finetune.images.thumbnails import LOOK
from finetune.strategy.evidence import evidence_of, stratified_sample
from finetune.types import Manifest, Sample, Target

WIDTHS = (128, 192, 256, 320, 384, 512, 512, 768, 1024, 1024)  # of ten layer groups
Case = Callable[[], Any]


def manifest_of(count: int, num_classes: int, *, split_name: str | None = None, per_group: int = 0) -> Manifest:
    """Return a manifest of generated names, classes in turn; neighbours within a class in groups of so many."""
    targets = [Target(index) for index in range(num_classes)]
    samples = tuple(
        Sample(
            f"class_{place % num_classes:04d}/image_{place:08d}.jpg",
            targets[place % num_classes],
            split_name,
            f"group {place % num_classes} {place // num_classes // per_group}" if per_group else None,
            digest=f"{place:032x}",
        )
        for place in range(count)
    )
    return Manifest("imgs", tuple(f"class_{index:04d}" for index in range(num_classes)), samples)


def metrics(count: int, num_classes: int, per_unit: int) -> Case:
    """Return the measuring of logits (N, K)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, num_classes, generator=generator)
    targets = torch.randint(num_classes, (count,), generator=generator)
    logits[torch.arange(count), targets] += 4
    units = (torch.arange(count) // per_unit).tolist() if per_unit > 1 else None
    return lambda: measure(logits, targets, units=units)


def evidence(num_classes: int, of_each: int) -> Case:
    """Return the evidence of ten layer groups, features (N, D) of the sample that is drawn from a train split."""
    manifest = manifest_of(num_classes * of_each, num_classes, split_name="train")
    chosen = stratified_sample(manifest, seed=0)
    targets = torch.tensor([sample.target.index for sample in chosen])
    generator = torch.Generator().manual_seed(0)
    features = {}
    for depth, width in enumerate(WIDTHS):
        centres = torch.randn(num_classes, width, generator=generator) * 0.15 * depth
        features[f"group {depth}"] = centres[targets] + torch.randn(len(targets), width, generator=generator)
    return lambda: (stratified_sample(manifest, seed=0), evidence_of(manifest, features, targets))


def copies(count: int, scenes: int, noise: int) -> Case:
    """Return the search for copies among frames: of fixed cameras that see so many scenes, noise on each frame."""
    generator = np.random.default_rng(0)
    looks = np.zeros(count, LOOK)
    coarse = generator.integers(0, 256, (scenes, 8, 8), dtype=np.int16)
    for start in range(0, count, 4096):
        here = np.arange(start, min(start + 4096, count)) % scenes
        shown = np.kron(coarse[here], np.ones((1, 4, 4), dtype=np.int16))
        shown += generator.normal(0, noise, shown.shape).astype(np.int16)
        looks["grey"][start : start + 4096] = shown.clip(0, 255)
    looks["colour"] = looks["grey"][:, ::4, ::4, None]
    looks["pixels"] = np.frombuffer(generator.bytes(16 * count), "V16")
    digests = [f"{place:032x}" for place in range(count)]
    return lambda: copies_of(looks, digests)


def splitting(count: int, per_group: int) -> Case:
    """Return the split of names in 1,000 classes."""
    manifest = manifest_of(count, 1000, per_group=per_group)
    return lambda: split.assign(manifest, val=0.2, test=0.1, seed=0)


CASES: dict[str, list[tuple[str, Callable[..., Case], tuple[int, ...]]]] = {
    "metrics": [
        ("10,000 images, 1,000 classes", metrics, (10_000, 1_000, 1)),
        ("the same in groups of four", metrics, (10_000, 1_000, 4)),
        ("100,000 images, 1,000 classes", metrics, (100_000, 1_000, 1)),
        ("1,000,000 images, 100 classes", metrics, (1_000_000, 100, 1)),
    ],
    "evidence": [
        ("10 classes, 1,000 images of each", evidence, (10, 1_000)),
        ("300 classes, 100 images of each", evidence, (300, 100)),
        ("1,000 classes, 100 images of each", evidence, (1_000, 100)),
        ("5,000 classes, 100 images of each", evidence, (5_000, 100)),
    ],
    "copies": [
        ("500 frames of one scene", copies, (500, 1, 6)),
        ("2,000 frames of one scene", copies, (2_000, 1, 6)),
        ("20,000 frames of one scene", copies, (20_000, 1, 6)),
        ("20,000 frames of 20 scenes", copies, (20_000, 20, 6)),
        ("20,000 frames that are alike to the hash alone", copies, (20_000, 1, 30)),
        ("100,000 images, no two alike", copies, (100_000, 100_000, 6)),
    ],
    "split": [
        ("100,000 names", splitting, (100_000, 0)),
        ("1,000,000 names", splitting, (1_000_000, 0)),
        ("1,000,000 names in groups of four", splitting, (1_000_000, 4)),
    ],
}


def resident() -> tuple[int, int]:
    """Return the bytes of memory that this process holds, and the most that it held (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    now, most = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def timed(make: Callable[..., Case], sizes: tuple[int, ...]) -> tuple[float, float]:
    """Return the seconds of computing that a case takes and the MB that it needs, without the making of its data."""
    act = make(*sizes)
    before, _ = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    began = time.process_time()
    act()
    seconds = time.process_time() - began
    return seconds, (resident()[1] - before) / 1e6


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *CASES], metavar="|".join(CASES))
    parser.add_argument("--most", type=int, default=9, help="only so many sizes of each")
    chosen = parser.parse_args()
    print("| what | of | CPU seconds | MB |\n| --- | --- | --- | --- |", flush=True)
    start = multiprocessing.get_context("spawn")
    for kind in chosen.kinds or CASES:
        for name, make, sizes in CASES[kind][: chosen.most]:
            with start.Pool(1) as pool:
                seconds, megabytes = pool.apply(timed, (make, sizes))
            print(f"| {kind} | {name} | {seconds:.1f} | {megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
