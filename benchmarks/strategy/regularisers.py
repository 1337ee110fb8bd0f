"""What keeps a network from learning few images by heart, and how fast and long it learns: each piece alone.

    python benchmarks/strategy/regularisers.py --data imgs more --weights FOLDER --sizes 10 --seeds 3

For every data set, size (train images of a class, val among them), seed and case it trains once, by the defaults but
for that piece, and keeps top1 and loss on test images, which are the same for all. `--cases` picks by name; `--table`
prints the mean and the deviation over seeds of what was measured, and the mean over seeds and sets of the difference
to the baseline on the same images. Rows are appended to a file, so that a stopped bench goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import keep, lay, options_of, rows_in

import finetune

Settings = dict[str, Any]  # of `finetune.run`, keys with a dot are overrides

TIMES = "times"  # the epochs that auto means

PIECES: dict[str, Settings] = {
    "all off": {"augment.level": "none", "optim.weight_decay": 0.0},
    "no weight decay": {"optim.weight_decay": 0.0},
    "weight decay 0.5": {"optim.weight_decay": 0.5},
    **{f"augment {level}": {"augment.level": level} for level in ("none", "light", "heavy")},
    "erase 0.25": {"augment.erase": 0.25},
    "label smoothing 0.1": {"loss.label_smoothing": 0.1},
    "mixup 0.2": {"regularise.mixup": 0.2},
    "cutmix 1": {"regularise.cutmix": 1.0},
    "FroFA 0.1": {"augment.features": 0.1},
    "ema 0.99": {"regularise.ema": 0.99},
    "dropout 0.3": {"regularise.dropout": 0.3},
    "drop path 0.1": {"regularise.drop_path": 0.1},
    "drop connect 0.5": {"regularise.drop_connect": 0.5},
    "l2-sp 0.01": {"regularise.l2_sp": 0.01},
    **{f"lr {lr:g}": {"optim.lr": lr} for lr in (3e-4, 2e-3, 3e-3)},
    **{f"layer decay {decay}": {"optim.layer_decay": decay} for decay in (0.5, 0.85)},
    **{f"epochs x {times}": {TIMES: times} for times in (0.5, 2)},
    "norm-only": {"strategy": "norm-only"},
    "bias-only": {"strategy": "bias-only"},
    "lora": {"strategy": "lora"},
}
NOT_OF = {  # pieces without a meaning for a strategy
    "full": ("FroFA 0.1",),
    "top-k": ("norm-only", "bias-only", "lora"),
    "head-only": (
        "cutmix 1",
        "drop path 0.1",
        "FroFA 0.1",
        "l2-sp 0.01",
        "norm-only",
        "bias-only",
        "lora",
        "layer decay 0.5",
        "layer decay 0.85",
    ),
    "linear-probe": tuple(name for name in PIECES if not name.startswith("augment ")),
}
CASES: dict[str, Settings] = {  # a strategy by its defaults, or "STRATEGY: PIECE"
    name: {"strategy": strategy, **piece}
    for strategy, others in NOT_OF.items()
    for name, piece in [
        (strategy, {}),
        *((f"{strategy}: {name}", piece) for name, piece in PIECES.items() if name not in others),
    ]
}


def main() -> None:
    """Measure what is missing, or print what was measured."""
    chosen = _options()
    rows = rows_in(chosen.out)
    if chosen.table:
        print("\n".join(table(rows)))
        return
    done = {key_of(row) for row in rows}
    missing = (
        row
        for seed in range(chosen.first_seed, chosen.seeds)
        for size in chosen.sizes
        for data in chosen.data
        for row in _measured(chosen, data, size, seed, done)
    )
    keep(missing, chosen, lambda row: (*key_of(row), row["top1"], row["seconds"]))


def _measured(
    chosen: argparse.Namespace, data: Path, size: int, seed: int, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one data set at one size that are missing."""
    folder = chosen.place / f"{data.name}-{size}-{seed}"
    num_train, num_test = lay(data, folder, size=size, seed=seed, most_test=chosen.most_test)
    for name in chosen.cases or CASES:
        weights = f"{Path(chosen.weights).name}@{chosen.image_size}"
        case = {"data": data.name, "weights": weights, "size": size, "seed": seed, "case": name}
        if key_of(case) in done:
            continue
        out = chosen.place / "run"
        shutil.rmtree(out, ignore_errors=True)
        settings = {key: value for key, value in CASES[name].items() if "." not in key}
        overrides = {key: value for key, value in CASES[name].items() if "." in key}
        if chosen.top_k and settings["strategy"] == "top-k":
            settings["top_k"] = chosen.top_k
        overrides |= {"cache.folder": str(chosen.place / "cache"), "split.seed": seed, "export.onnx_at_end": False}
        times = settings.pop(TIMES, None)
        asked = {"weights": chosen.weights, "image_size": chosen.image_size, "seed": seed, **settings}
        if times:
            phases = finetune.plan(folder, **asked, overrides=overrides).phases
            overrides["train.epochs"] = max(1, round(times * sum(phase.epochs for phase in phases)))
        began = time.monotonic()
        result = finetune.run(folder, **asked, out=out, overrides=overrides)
        found = result.metrics["test"]
        figures = {name: found[name]["value"] for name in ("top1", "nll", "ece")}
        yield {
            **case,
            "num_train": num_train,
            "num_test": num_test,
            **figures,
            "seconds": round(time.monotonic() - began, 1),
        }


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a row is found again by."""
    return tuple(row[name] for name in ("data", "weights", "size", "seed", "case"))


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a row for each case, columns for sets at their sizes."""
    places = sorted({(row["data"], row["size"]) for row in rows}, key=lambda place: (place[1], place[0]))
    found = {(row["case"], row["data"], row["size"], row["seed"]): row["top1"] for row in rows}
    yield "| | " + " | ".join(f"{data}, {size} a class" for data, size in places) + " | against its baseline |"
    yield "| --- |" + " --- |" * (len(places) + 1)
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = []
        for place in places:
            values = [top1 for (name, *at, _), top1 in found.items() if (name, *at) == (case, *place)]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "not run")
        yield "| " + " | ".join((case, *cells, gained(found, case))) + " |"


def gained(found: dict[tuple[str, str, int, int], float], case: str) -> str:
    """Return how far a case is above its baseline on the same images and seeds, in points with their 95 % interval.

    The interval is that of the mean over pairs: 1.96 standard errors.
    """
    baseline = case.partition(":")[0]
    keys = [key[1:] for key in found if key[0] == case and (baseline, *key[1:]) in found]
    gains = [100 * (found[case, *key] - found[baseline, *key]) for key in keys]
    if case == baseline or not gains:
        return ""
    half = 1.96 * statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return f"{statistics.mean(gains):+.1f} ± {half:.1f} ({len(gains)})"


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "regularisers", sizes=[10])
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--weights", help="a timm folder", default="")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", choices=CASES, help="some of them only", metavar="CASE")
    parser.add_argument("--top-k", type=int, help="layer groups that top-k trains (its own default: the last)")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--table", action="store_true", help="print what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
