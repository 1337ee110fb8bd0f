"""How many cached views lose nothing against fresh augmentation every epoch?

    python benchmarks/views.py --data imgs --weights FOLDER [--data more] [--image-size 128] [--seeds 3]

Trains with cache.views = 1, 2, 4, 8 and without a cache, on the same split, and prints val top1 of the
last epoch, mean over seeds, with the seconds of training (views are filled cold for each seed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import finetune


def measure(data: str, weights: str, strategy: str, size: int, seed: int, views: int | None) -> tuple[float, float]:
    """Return (val top1 of the last epoch, seconds of training) of one run."""
    with tempfile.TemporaryDirectory() as place:
        overrides = {
            "train.patience": "none",
            "split.val": 0.4,
            "cache.features": "none" if views is None else "memory",
            "cache.views": views or "auto",
        }
        result = finetune.run(
            data,
            weights=weights,
            strategy=strategy,
            image_size=size,
            seed=seed,
            out=f"{place}/run",
            overrides=overrides,
        )
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        seconds = json.loads((result.folder / "timing.json").read_text())["seconds"]["train"]
        return json.loads(lines[-1])["val_top1"], seconds


def main() -> None:
    """Print one row for each data set and strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--strategies", default="head-only")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    cases = (1, 2, 4, 8, None)
    print("| data | strategy |", " | ".join("fresh" if views is None else f"{views} views" for views in cases), "|")
    print("| --- | --- |", " | ".join("---" for _ in cases), "|")
    for data in chosen.data:
        for strategy in chosen.strategies.split(","):
            cells = []
            for views in cases:
                runs = [
                    measure(data, chosen.weights, strategy, chosen.image_size, seed, views)
                    for seed in range(chosen.seeds)
                ]
                values, seconds = zip(*runs, strict=True)
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}, {statistics.mean(seconds):.0f} s")
            print("|", Path(data).name, "|", strategy, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
