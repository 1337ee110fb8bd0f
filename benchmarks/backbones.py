"""Is the backbone that `run --among` takes the right one? Every backbone is trained, and the choices are compared.

    python benchmarks/backbones.py --data imgs more --weights FOLDER FOLDER@128 embedded --sizes 10 50 --seeds 2

For every data set, size (train images of a class, val among them; 0 is all) and seed the backbones are ranked, and
each is trained with the strategy that auto finds for it; top1 is that on test images which are the same for all. Then
it is told what each way of choosing reaches: the largest in compute, the first of the ranking, the one it recommends,
and the winner of a race as `run --among` holds it, which follows from what each has shown on val up to the rung.
Regret is the top1 of the backbone that is best on the other seeds, less that of the one chosen. Rows are appended to
a file, so that a stopped bench goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "strategy"))

from measure import keep, lay, options_of, rows_in

import finetune
from finetune.strategy.race import MOST_OF_EPOCHS
from finetune.train.delivery import TOLD_APART, delivered
from finetune.types import EpochLine

Case = tuple[str, int, int]  # data set, size, seed


def main() -> None:
    """Measure what is missing, or print what was measured."""
    chosen = _options()
    rows = rows_in(chosen.out)
    done = {_key(row) for row in rows}
    if chosen.table:
        print("\n".join(tables(rows)))
        return
    missing = (
        row
        for seed in range(chosen.seeds)
        for size in chosen.sizes
        for data in chosen.data
        for row in _case(chosen, data, size, seed, done)
    )
    keep(missing, chosen, lambda row: (*_key(row), row.get("top1", "")))


def _case(
    chosen: argparse.Namespace, data: Path, size: int, seed: int, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    folder = chosen.place / f"{data.name}-{size}-{seed}"
    lay(data, folder, size=size, seed=seed, most_test=chosen.most_test)
    case = {"data": data.name, "size": size, "seed": seed}
    common = {"overrides": {"cache.folder": str(chosen.place / "cache"), "split.seed": seed}, "seed": seed}
    if _key({**case, "kind": "rank"}) not in done:
        ranked = finetune.rank(folder, chosen.weights, **common)
        starts, recommended = list(ranked.ranking.starters), ranked.ranking.recommended
        candidates = {one.name: [one.predicted.value, one.gmacs] for one in ranked.ranking.candidates}
        yield {**case, "kind": "rank", "candidates": candidates, "starts": starts, "recommended": recommended}
    for weights in chosen.weights:
        row = {**case, "kind": "run", "backbone": Path(weights).name}
        if _key(row) in done:
            continue
        out = chosen.place / "run"
        shutil.rmtree(out, ignore_errors=True)
        result = finetune.run(folder, among=weights, out=out, **common)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        num_val = (out / "split.csv").read_text().count(",val,")
        top1 = result.metrics["test"]["top1"]["value"]
        yield {**row, "strategy": result.strategy, "top1": top1, "num_val": num_val, "history": lines}


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield top1 of every backbone and what each choice regrets, as Markdown."""
    runs: dict[Case, dict[str, dict[str, Any]]] = {}
    ranks = {(row["data"], row["size"], row["seed"]): row for row in rows if row["kind"] == "rank"}
    for row in rows:
        if row["kind"] == "run":
            runs.setdefault((row["data"], row["size"], row["seed"]), {})[row["backbone"]] = row
    names = sorted({name for of in runs.values() for name in of})
    whole = {case: of for case, of in runs.items() if len(of) == len(names) and case in ranks}
    yield f"| data | a class | seed | {' | '.join(names)} | ranked first | race |"
    yield "| --- | --- | --- |" + " --- |" * (len(names) + 2)
    regrets: dict[str, list[float]] = {}
    for case, of in sorted(whole.items()):
        top1 = {name: row["top1"] for name, row in of.items()}
        picks = choices(ranks[case], of)
        others = [other for key, other in whole.items() if key[:2] == case[:2] and key != case]
        if others:
            best = max(names, key=lambda name: statistics.mean(other[name]["top1"] for other in others))
            for way, name in [*picks.items(), *((f"always {name}", name) for name in names)]:
                regrets.setdefault(way, []).append(100 * (top1[best] - top1[name]))
        cells = " | ".join(f"{top1[name]:.3f} ({of[name]['strategy']})" for name in names)
        yield f"| {' | '.join(map(str, case))} | {cells} | {picks['ranked first']} | {picks['race']} |"
    yield ""
    yield "| choice | mean regret, points | worst |"
    yield "| --- | --- | --- |"
    for way, values in regrets.items():
        half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        yield f"| {way} | {statistics.mean(values):.2f} ± {half:.2f} ({len(values)}) | {max(values):.1f} |"


def choices(rank: dict[str, Any], runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the backbone that each way of choosing takes."""
    candidates, starts = rank["candidates"], rank["starts"]
    first = max(candidates, key=lambda name: candidates[name][0])
    return {
        "largest in compute": max(candidates, key=lambda name: candidates[name][1]),
        "ranked first": first,
        "recommended": rank["recommended"],
        "race": _raced(starts, runs, head_start=TOLD_APART - 0.5),
        "race without a favourite": _raced(starts, runs, head_start=0.0),
        "val of those that start, at the end": max(starts, key=lambda name: _val(runs[name], None)),
    }


def _raced(starts: list[str], runs: dict[str, dict[str, Any]], *, head_start: float) -> str:
    """Return who wins: solved heads run whole, others to a third of the epochs of whoever has the fewest."""
    counts = [len(runs[name]["history"]) for name in starts if len(runs[name]["history"]) > 1]
    rung = max(1, min(counts, default=1) // MOST_OF_EPOCHS)

    def standing(name: str) -> float:
        run = runs[name]
        is_cheap = run["strategy"] in ("linear-probe", "head-only")
        bonus = head_start / run["num_val"] if name == starts[0] else 0.0
        return _val(run, None if is_cheap else rung) + bonus

    return max(starts, key=standing)


def _val(run: dict[str, Any], epochs: int | None) -> float:
    history = [EpochLine(**line) for line in run["history"]][:epochs]
    would_be = delivered(history, run["num_val"])
    return float(next(line.val_top1 or 0.0 for line in history if line.epoch == would_be))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("kind", "data", "size", "seed", "backbone"))


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "backbones", sizes=[10, 50], seeds=2)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--weights", nargs="*", default=[], help="timm folders or names, with @PIXELS, or embedded")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
