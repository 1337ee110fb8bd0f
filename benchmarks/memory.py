"""Memory of the data path with a million images that exist in name only, and of a run against an evaluation.

    python benchmarks/memory.py [--images 1000000] [--shards]

Names, labels and hashes are generated; listing, splitting, the order of an epoch, the data set handed to
workers and the index of a cache are the real ones. Prints bytes an image at the peak of every step.
With --shards the images (32 bytes and a class each) are generated into real tar shards, and listed from them.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from finetune.cache_entries import RECORD, open_entry
from finetune.data import sources, split
from finetune.data.loaders import ImageDataset, Order
from finetune.images.files import read_content
from finetune.images.transforms import plain_view
from finetune.types import Manifest, Preprocessing, Sample, Target

SETTINGS = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
NUM_CLASSES = 1000


def manifest_of(count: int) -> Manifest:
    """Return a manifest of generated names, 1,000 classes."""
    targets = [Target(index) for index in range(NUM_CLASSES)]
    samples = tuple(
        Sample(f"class_{i % NUM_CLASSES:04d}/image_{i:08d}.jpg", targets[i % NUM_CLASSES], digest=f"{i:032x}")
        for i in range(count)
    )
    return Manifest("imgs", tuple(f"class_{i:04d}" for i in range(NUM_CLASSES)), samples)


def write_shards(folder: Path, count: int) -> None:
    """Write shards of 10,000 images of 32 bytes."""
    folder.mkdir()
    for start in range(0, count, 10_000):
        with tarfile.open(folder / f"all-{start // 10_000:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(start, min(start + 10_000, count)):
                for kind, content in (("jpg", f"{number:032d}"), ("cls", f"{number % NUM_CLASSES}")):
                    head = tarfile.TarInfo(f"{number:09d}.{kind}")
                    head.size = len(content)
                    tar.addfile(head, io.BytesIO(content.encode()))


def indexed(folder: Path, count: int) -> Any:
    """Return a cache entry with a row of one byte an image."""
    entry = open_entry(folder, {})
    records = np.zeros(count, RECORD)
    keys = np.zeros((count, 16), np.uint8)
    keys[:, 8:] = np.arange(count, dtype=">u8").view(np.uint8).reshape(-1, 8)
    records["key"], records["offset"], records["length"] = keys.view("V16")[:, 0], np.arange(count), 1
    entry.rows_file.write_bytes(b"\0" * count)
    entry.index_file.write_bytes(records.tobytes())
    del records, keys
    return open_entry(folder, {})


def resident() -> tuple[int, int]:
    """Return the bytes of memory that this process holds, and the most that it held (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    now, most = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", action="store_true")
    asked = parser.parse_args()
    count = asked.images
    print(f"{count:,} images\n| step | seconds | bytes an image that stay | at the peak |\n| --- | --- | --- | --- |")

    def step(name: str, act: Callable[[], Any]) -> Any:
        before, _ = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        began = time.monotonic()
        made = act()
        seconds = time.monotonic() - began
        stays, peak = resident()
        print(
            f"| {name} | {seconds:.1f} | {(stays - before) / count:,.0f} | {(peak - before) / count:,.0f} |", flush=True
        )
        return made

    with tempfile.TemporaryDirectory() as place:
        if asked.shards:
            os.environ["FINETUNE_CACHE"] = str(Path(place, "cache"))
            write_shards(Path(place, "shards"), count)
            data = f"wds:{place}/shards"
            step("shards looked through, the list", lambda: sources.read(data))
            manifest = step("the list, as kept", lambda: sources.read(data))
            root, samples = Path(manifest.root), manifest.samples
            places = [root / samples[place].file for place in range(0, count, 997)]
            step(f"{len(places):,} images read here and there", lambda: sum(len(read_content(p)) for p in places))
        else:
            manifest = step("the list of files", lambda: manifest_of(count))
        manifest = step("the split", lambda: split.assign(manifest, val=0.2, test=0.1, seed=0))
        step("split.csv", lambda: split.write(manifest, Path(place, "split.csv")))
        train = manifest.split("train")
        dataset = step("the data set", lambda: ImageDataset("imgs", train, plain_view(SETTINGS), SETTINGS, seed=0))
        order = Order(len(train), batch_size=64, seed=0, shards=dataset.shards)
        step("an epoch's order", lambda: sum(1 for _ in order))
        step("the index of a cache", lambda: indexed(Path(place), count))
        print(f"\nwhat each worker gets: {len(pickle.dumps(dataset)) / len(train):,.0f} bytes an image")


if __name__ == "__main__":
    main()
