"""What the bench says: top1 of every strategy, and the regret of auto's rule with its cut-offs fitted elsewhere.

    python benchmarks/strategy/table.py build/strategy.jsonl

Regret of a case is the top1 of the strategy that was best there on the other seeds, minus that of the
strategy in question: a winner picked on the figures it is scored on would look better than it is. The
rule (two cut-offs and a strategy for each cell of the matrix) is fitted on all data sets but one and
judged on that one. Intervals are those of the mean over data sets (t, 95 %).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from finetune.strategy.matrix import similarity_score, size_score
from finetune.types import Confidence, Evidence, Interval, Size

T95 = {2: 12.7, 3: 4.3, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
SIZES = [round(-1.6 + 0.2 * step, 1) for step in range(13)]
SIMILARITIES = [round(-0.5 + 0.1 * step, 1) for step in range(11)]


@dataclass(frozen=True)
class Case:
    """One data set at one size and seed under one backbone: where the rule sees it, and what every strategy got."""

    data: str
    backbone: str
    size: int
    seed: int
    place: tuple[float, float]  # size score, similarity score
    top1: dict[str, float]
    regret: dict[str, float]


@dataclass(frozen=True)
class Rule:
    """Two cut-offs, and the strategy of each cell: (many, similar) to name."""

    cuts: tuple[float, float]
    cells: dict[tuple[bool, bool], str]

    def choice(self, case: Case) -> str:
        return self.cells[self.cell(case)]

    def cell(self, case: Case) -> tuple[bool, bool]:
        return case.place[0] >= self.cuts[0], case.place[1] >= self.cuts[1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    rows = [json.loads(line) for file in parser.parse_args().files for line in file.read_text().splitlines()]
    cases = list(_cases(rows))
    names = [name for name in dict.fromkeys(n for c in cases for n in c.top1) if all(name in c.top1 for c in cases)]
    _show_top1(cases, names)
    print("\n| strategy | mean regret, points | worst case |\n| --- | --- | --- |")
    for name in names:
        _show_regret(name, cases, lambda case, name=name: name)
    left_out: dict[int, str] = {}
    for data in dict.fromkeys(case.data for case in cases):
        rule = fit([case for case in cases if case.data != data], names)
        left_out |= {id(case): rule.choice(case) for case in cases if case.data == data}
    _show_regret("auto, data set left out", cases, lambda case: left_out[id(case)])
    rule = fit(cases, names)
    _show_regret("auto, fitted on all", cases, rule.choice)
    print(f"\nfitted on all: many from {rule.cuts[0]:g}, similar from {rule.cuts[1]:g}")
    for (is_many, is_similar), name in rule.cells.items():
        count = sum(rule.cell(case) == (is_many, is_similar) for case in cases)
        print(f"  {'many' if is_many else 'few'}, {'similar' if is_similar else 'dissimilar'}: {name} ({count} cases)")
    bad = [case for case in cases if case.regret[left_out[id(case)]] > 0.03]
    print(f"\n{len(bad)} of {len(cases)} cases above 3 points:")
    for case in bad:
        chosen = left_out[id(case)]
        print(f"  {case.data}, {case.size} a class, seed {case.seed}: {chosen} {case.regret[chosen]:.3f}")


def fit(cases: Sequence[Case], names: Sequence[str]) -> Rule:
    """Yield the rule with the least mean regret, every data set counting alike; of equals, the first."""
    weights = {data: 1 / sum(c.data == data for c in cases) for data in {case.data for case in cases}}
    best, found = math.inf, None
    for cuts in product(SIZES, SIMILARITIES):
        cells: dict[tuple[bool, bool], str] = {}
        total = 0.0
        for cell in product((False, True), repeat=2):
            inside = [c for c in cases if (c.place[0] >= cuts[0], c.place[1] >= cuts[1]) == cell]
            sums = {name: sum(weights[c.data] * c.regret[name] for c in inside) for name in names}
            cells[cell] = min(sums, key=sums.__getitem__)
            total += sums[cells[cell]]
        if total < best - 1e-9:
            best, found = total, Rule(cuts, cells)
    assert found is not None
    return found


def _cases(rows: Sequence[dict[str, Any]]) -> Iterable[Case]:
    top1: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    evidence: dict[tuple[Any, ...], Evidence] = {}
    for row in rows:
        key = (row["data"], row["backbone"], row["size"], row["seed"])
        if row["kind"] == "run":
            top1[key][row["strategy"]] = row["top1"]
        else:
            evidence[key] = _evidence(row["evidence"])
    for key, found in top1.items():
        others = [top1[other] for other in top1 if other[:3] == key[:3] and other[3] != key[3]]
        if not others or key not in evidence:
            continue
        shared = [name for name in found if all(name in other for other in others)]
        best = max(shared, key=lambda name: statistics.mean(other[name] for other in others))
        regret = {name: found[best] - found[name] for name in found}
        seen = evidence[key]
        yield Case(*key, (size_score(seen, is_similar=True).value, similarity_score(seen).value), found, regret)


def _evidence(raw: dict[str, Any]) -> Evidence:
    found = {name: Interval(**raw[name]) for name in ("joint", "behind", "shift") if raw[name]}
    size = Size(**{**raw["size"], "gain": Interval(**raw["size"]["gain"])})
    probe = {name: Interval(**value) for name, value in raw["probe"].items()}
    asked = raw["confidence"]
    confidence = Confidence(asked["top"], Interval(**asked["entropy"])) if asked else None
    return Evidence(**{**raw, **found, "size": size, "probe": probe, "confidence": confidence})


def _show_top1(cases: Sequence[Case], names: Sequence[str]) -> None:
    print("| data | backbone | a class |", " | ".join(names), "|")
    print("| --- " * (len(names) + 3) + "|")
    for key in dict.fromkeys((case.data, case.backbone, case.size) for case in cases):
        inside = [case for case in cases if (case.data, case.backbone, case.size) == key]
        means = {name: statistics.mean(case.top1[name] for case in inside) for name in names}
        best = max(means.values())
        shown = (f"**{value:.3f}**" if value == best else f"{value:.3f}" for value in means.values())
        print(f"| {key[0]} | {key[1]} | {key[2] or 'all'} | {' | '.join(shown)} |")


def _show_regret(name: str, cases: Sequence[Case], choice: Callable[[Case], str]) -> None:
    by_data: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        by_data[case.data].append(100 * case.regret[choice(case)])
    means = [statistics.mean(values) for values in by_data.values()]
    mean = statistics.mean(means)
    half = T95.get(len(means), 2.2) * statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    worst = max(cases, key=lambda case: case.regret[choice(case)])
    value = 100 * worst.regret[choice(worst)]
    print(f"| {name} | {mean:.2f} [{mean - half:.2f}, {mean + half:.2f}] | {value:.1f} ({worst.data}, {worst.size}) |")


if __name__ == "__main__":
    main()
