"""What more work than one run brings on unseen images: folds as an ensemble, a refit, and a search for hyperparameters.

    python benchmarks/strategy/search.py --data imgs more --weights FOLDER --sizes 25 --seeds 3 --trials 30

For every data set, size (images of a class to learn from) and seed: one run with the defaults, the same refitted on
all of them, five folds that answer as one, and the winner of `finetune tune`. Each is asked about the same unseen
images. Rows are appended to a file, so that a stopped bench goes on where it was; at the end the means and their
differences from the default are printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import lay, options_of, rows_in

import finetune

Ways = dict[str, Callable[[Path, Path, dict[str, Any]], Path]]  # from data, a new folder and settings: what is asked


def ways(trials: int) -> Ways:
    """Return what is compared, by name."""

    def tuned(data: Path, out: Path, settings: dict[str, Any]) -> Path:
        found = finetune.tune(data, trials=trials, out=out / "search", **settings)
        return finetune.run(recipe=found.folder / "winner.toml", out=out / "winner").folder

    return {
        "default": lambda data, out, settings: finetune.run(data, out=out, **settings).folder,
        "refit": lambda data, out, settings: finetune.run(data, out=out, refit=True, **settings).folder,
        "folds": lambda data, out, settings: finetune.run_several(data, folds=5, out=out, **settings).folder,
        f"tune {trials}": tuned,
    }


def main() -> None:
    """Measure what is missing, then print the table."""
    chosen = _options()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_in(chosen.out)
    done = {_key(row) for row in rows}
    end = time.monotonic() + 60 * chosen.minutes
    cases = [(data, size, seed) for seed in range(chosen.seeds) for data in chosen.data for size in chosen.sizes]
    for data, size, seed in cases:
        folder = chosen.place / f"{data.name}-{size}-{seed}"
        lay(data, folder, size=size, seed=seed, most_test=chosen.most_test)
        for way, build in ways(chosen.trials).items():
            row = {"data": data.name, "size": size, "seed": seed, "way": way}
            if _key(row) in done or way not in (chosen.ways or (way,)) or time.monotonic() > end:
                continue
            out = chosen.place / "runs" / "-".join(map(str, row.values())).replace(" ", "-")
            shutil.rmtree(out, ignore_errors=True)  # of a bench that was stopped
            keys = {"cache.folder": str(chosen.place / "cache"), "split.seed": seed}
            shared = {"weights": chosen.weights, "image_size": chosen.image_size, "seed": seed, "overrides": keys}
            began = time.monotonic()
            asked = build(folder, out, {**shared, **({"strategy": chosen.strategy} if chosen.strategy else {})})
            row |= {"seconds": round(time.monotonic() - began, 1), "top1": round(_top1(asked, folder / "test"), 4)}
            rows.append(row)
            with chosen.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(*row.values(), flush=True)
            shutil.rmtree(out)
    _print(rows)


def _top1(asked: Path, unseen: Path) -> float:
    files = sorted(unseen.glob("*/*"))
    found = finetune.load(asked).predict(files)
    return statistics.mean(one.label == file.parent.name for one, file in zip(found, files, strict=True))


def _print(rows: list[dict[str, Any]]) -> None:
    """Print the mean of each way over seeds, and how much more than the default it is, in points, seed by seed."""
    by_case: dict[tuple[str, int], dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_case[row["data"], row["size"]][row["way"]][row["seed"]] = row
    for (data, size), of_way in sorted(by_case.items()):
        for way, by_seed in of_way.items():
            base = of_way["default"]
            gaps = [100 * (row["top1"] - base[seed]["top1"]) for seed, row in by_seed.items() if seed in base]
            time_ratio = statistics.median(row["seconds"] / base[seed]["seconds"] for seed, row in by_seed.items())
            top1 = statistics.mean(row["top1"] for row in by_seed.values())
            each = " ".join(f"{gap:+.1f}" for gap in gaps)
            print(f"{data:20} {size:4}  {way:10} {top1:.3f}  {statistics.mean(gaps):+.1f} ({each})  x {time_ratio:.1f}")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "size", "seed", "way"))


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "search", sizes=[25], late="begin nothing after so long")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", required=True, help="a timm folder")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--ways", nargs="*", help="some of them only")
    parser.add_argument("--strategy", help="of every run; else the defaults decide")
    parser.add_argument("--image-size", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
