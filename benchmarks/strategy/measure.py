"""Run every strategy on data sets at several sizes: what the cut-offs of auto are fitted on.

    python benchmarks/strategy/measure.py --data imgs more --weights embedded FOLDER --sizes 10 25 100 --seeds 2

For every data set, backbone, size (train images of a class, val among them; 0 is all) and seed every
strategy is run (rows of kind "run", top1 on test); with --evidence `plan` says instead what auto sees and
would do (rows of kind "evidence"). A set's own test split is taken where it has one, its val split else, else a part
of the images that is the same for every size and seed. Rows are appended to a file, so that a stopped
bench goes on where it was; `table.py` reads them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import finetune
from finetune.data import sources
from finetune.types import Manifest

TEST_SHARE = 0.4  # of the images of a set without splits


def strategies(num_groups: int) -> dict[str, dict[str, Any]]:
    """Return the fixed strategies: a name, and the settings of the run."""
    quarter, half = max(1, round(num_groups / 4)), max(2, round(num_groups / 2))
    return {
        "head-only": {"strategy": "head-only"},
        "probe last": {"strategy": "linear-probe"},
        "probe all": {"strategy": "linear-probe", "probe_at": "all"},
        "top-k quarter": {"strategy": "top-k", "top_k": quarter},
        "top-k half": {"strategy": "top-k", "top_k": half},
        "lp-ft quarter": {"strategy": "lp-ft", "top_k": quarter},
        "lp-ft half": {"strategy": "lp-ft", "top_k": half},
        "full": {"strategy": "full"},
        "lp-ft": {"strategy": "lp-ft"},
        "scratch": {"strategy": "scratch"},
    }


def main() -> None:
    """Measure what is missing."""
    chosen = _options()
    done = {_key(row) for row in rows_in(chosen.out)}
    missing = (
        row
        for seed in range(chosen.first_seed, chosen.seeds)
        for weights in chosen.weights
        for data in chosen.data
        for size in chosen.sizes
        for row in _case(chosen, data, weights, size, seed, done)
    )
    keep(missing, chosen, lambda row: (*_key(row), row.get("top1", row.get("verdict", {}).get("reason"))))


def rows_in(file: Path) -> list[dict[str, Any]]:
    """Return the rows that a bench has kept in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def keep(rows: Iterable[dict[str, Any]], chosen: argparse.Namespace, told: Callable[[dict[str, Any]], Any]) -> None:
    """Append rows to the file of a bench as they are measured, and print what is told of each, until its time is over.

    The row that is measured then is kept.
    """
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * chosen.minutes
    for row in rows:
        with chosen.out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(*told(row), flush=True)
        if time.monotonic() > end:
            return


def _case(
    chosen: argparse.Namespace, data: Path, weights: str, size: int, seed: int, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one data set at one size that are missing."""
    folder = chosen.place / f"{data.name}-{size}-{seed}"
    num_train, num_test = lay(data, folder, size=size, seed=seed, most_test=chosen.most_test)
    if size and num_train == chosen.cases.get((data.name, seed)):
        return  # no more images than at the size before
    chosen.cases[data.name, seed] = num_train
    case = {"data": data.name, "backbone": Path(weights).name, "size": size, "seed": seed}
    common = {
        **({"backbone": "embedded"} if weights == "embedded" else {"weights": weights}),
        "image_size": chosen.image_size,
        "seed": seed,
    }
    folders = {"cache.folder": str(chosen.place / "cache"), "split.seed": seed, "export.onnx_at_end": False}
    facts = {"num_train": num_train, "num_test": num_test}
    if chosen.evidence:
        if _key({**case, "kind": "evidence"}) not in done:
            plan = finetune.plan(folder, **common, overrides=folders).to_json()
            yield {**case, "kind": "evidence", **facts, "evidence": plan["evidence"], "verdict": plan["verdict"]}
        return
    for name, settings in strategies(_num_groups(weights)).items():
        if name not in (chosen.strategies or (name,)) or _key({**case, "kind": "run", "strategy": name}) in done:
            continue
        out = chosen.place / "runs" / "-".join(map(str, (*case.values(), name))).replace(" ", "-")
        shutil.rmtree(out, ignore_errors=True)  # of a bench that was stopped
        began = time.monotonic()
        result = finetune.run(folder, **common, **settings, out=out, overrides=folders)
        seconds = time.monotonic() - began
        found = {key: result.metrics["test"][key]["value"] for key in ("top1", "nll", "ece")}
        yield {**case, "kind": "run", "strategy": name, **facts, **found, "seconds": round(seconds, 2)}
        for file in (*out.rglob("*.safetensors"), *out.rglob("*.html")):
            file.unlink()


@cache
def _num_groups(weights: str) -> int:
    named = {"backbone": "embedded"} if weights == "embedded" else {"weights": weights}
    return sum(not group.is_head for group in finetune.plan(strategy="head-only", **named).groups)


def lay(data: Path, folder: Path, *, size: int, seed: int, most_test: int) -> tuple[int, int]:
    """Lay links to a sample of a set as train/CLASS and test/CLASS; yield how many there are of each."""
    manifest = sources.read(data)
    kept, left = _sets(manifest)
    share = min(1.0, most_test / sum(map(len, kept)))
    counts = [0, 0]
    for label, (test, train) in enumerate(zip(kept, left, strict=True)):
        tested = random.Random(0).sample(test, max(1, round(share * len(test))))
        trained = random.Random(seed).sample(train, min(size or len(train), len(train)))
        for part, (name, files) in enumerate((("train", trained), ("test", tested))):
            place = folder / name / manifest.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            for file in files:
                source = Path(manifest.root, file).resolve()
                link = place / (file.replace("/", "-"))
                if not link.is_symlink():
                    link.symlink_to(source)
            counts[part] += len(files)
    return counts[0], counts[1]


def _sets(manifest: Manifest) -> tuple[list[list[str]], list[list[str]]]:
    """Return the files of each class that test and that train."""
    named = {sample.split for sample in manifest.samples}
    testing = next((name for name in ("test", "val") if name in named), None)
    test: list[list[str]] = [[] for _ in manifest.classes]
    train: list[list[str]] = [[] for _ in manifest.classes]
    for label in range(len(manifest.classes)):
        files = [sample for sample in manifest.samples if sample.target.index == label]
        if testing:
            test[label] = [sample.file for sample in files if sample.split == testing]
            train[label] = [sample.file for sample in files if sample.split == "train"]
        else:
            mixed = random.Random(0).sample([sample.file for sample in files], len(files))
            cut = round(TEST_SHARE * len(mixed))
            test[label], train[label] = mixed[:cut], mixed[cut:]
    return test, train


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("kind", "backbone", "data", "size", "seed", "strategy"))


def options_of(
    doc: str | None, name: str, *, sizes: list[int], seeds: int = 3, late: str = "stop after the row that comes then"
) -> argparse.ArgumentParser:
    """Return a parser of what every bench takes that lays samples of sets and appends rows to a file."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--most-test", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=1e9, help=late)
    parser.add_argument("--place", type=Path, default=Path("build") / name, help="links, caches and runs")
    parser.add_argument("--out", type=Path, default=Path("build") / f"{name}.jsonl")
    return parser


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "strategy", sizes=[10, 25, 50, 100, 0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", nargs="+", required=True, help="timm folders, or embedded")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="*", help="some of them only")
    parser.add_argument("--evidence", action="store_true", help="what auto sees, instead of runs")
    parser.add_argument("--image-size", type=int, default=128)
    chosen = parser.parse_args()
    chosen.cases = {}
    return chosen


if __name__ == "__main__":
    main()
