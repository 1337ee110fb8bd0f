"""What the bench says: top1 of every strategy, and the regret of auto's rule with its cut-offs fitted elsewhere.

    python benchmarks/strategy/table.py build/strategy.jsonl

Regret of a case is the top1 of the strategy that was best there on the other seeds, minus that of the
strategy in question: a winner picked on the figures it is scored on would look better than it is. The
rule (a cut-off of similarity; on each side of it a cut-off of size, and a strategy for each cell) is
fitted on the other data sets and, of several, the other backbones, and judged on the one left out. "auto" is
`strategy.matrix.decide` as it stands, and "behind auto" the difference to it, case by case.
Intervals are those of the mean over data sets (t, 95 %).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.strategy.matrix import decide, similarity_score
from finetune.types import Confidence, Evidence, Interval, Size

T95 = {2: 12.7, 3: 4.3, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
SIZES = (0, 3, 6, 12, 30, 60, 120)  # train images of a class from which they are many
SIMILARITIES = [round(-0.5 + 0.1 * step, 1) for step in range(11)]


@dataclass(frozen=True)
class Case:
    """One data set at one size and seed under one backbone: where the rule sees it, and what every strategy got."""

    data: str
    backbone: str
    size: int
    seed: int
    place: tuple[float, float]  # train images of a class (median), similarity score
    auto: str
    top1: dict[str, float]
    regret: dict[str, float]


@dataclass(frozen=True)
class Rule:
    """A cut-off of similarity; on each side (dissimilar, similar) one of size, and what few and many take."""

    similar_from: float
    sides: tuple[tuple[float, str, str], tuple[float, str, str]]

    def choice(self, case: Case) -> str:
        many_from, few, many = self.sides[case.place[1] >= self.similar_from]
        return many if case.place[0] >= many_from else few


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    rows = [json.loads(line) for file in parser.parse_args().files for line in file.read_text().splitlines()]
    cases = list(_cases(rows))
    if not cases:
        parser.error("no case has runs of two seeds and evidence: measure.py --seeds 2, and again with --evidence")
    names = [name for name in dict.fromkeys(n for c in cases for n in c.top1) if all(name in c.top1 for c in cases)]
    _show_top1(cases, names)
    print("\n| strategy | mean regret, points | behind auto | worst case |\n| --- | --- | --- | --- |")
    for name in names:
        _show_regret(name, cases, lambda case, name=name: name)
    left_out: dict[int, str] = {}
    several = len({case.backbone for case in cases}) > 1
    for data, backbone in dict.fromkeys((case.data, case.backbone) for case in cases):
        others = [c for c in cases if c.data != data and not (several and c.backbone == backbone)]
        rule = fit(others, names)
        left_out |= {id(c): rule.choice(c) for c in cases if (c.data, c.backbone) == (data, backbone)}
    _show_regret("auto, data set and backbone left out", cases, lambda case: left_out[id(case)])
    rule = fit(cases, names)
    _show_regret("auto, fitted on all", cases, rule.choice)
    _show_regret("auto", cases, lambda case: case.auto)
    print(f"\nfitted on all: similar from {rule.similar_from:g}")
    for name, (many_from, few, many) in zip(("dissimilar", "similar"), rule.sides, strict=True):
        print(f"  {name}: {few}; many from {many_from:g}: {many}")
    bad = [case for case in cases if case.regret[left_out[id(case)]] > 0.03]
    print(f"\n{len(bad)} of {len(cases)} cases above 3 points:")
    for case in bad:
        chosen = left_out[id(case)]
        print(f"  {case.data}, {case.size} a class, seed {case.seed}: {chosen} {case.regret[chosen]:.3f}")


def fit(cases: Sequence[Case], names: Sequence[str]) -> Rule:
    """Return the rule with the least mean regret, every data set counting alike; of equals, the first."""
    weights = {data: 1 / sum(c.data == data for c in cases) for data in {case.data for case in cases}}
    best, found = math.inf, None
    for cut in SIMILARITIES:
        total, sides = 0.0, []
        for is_similar in (False, True):
            inside = [case for case in cases if (case.place[1] >= cut) == is_similar]
            lost, *side = min(_sides(inside, names, weights), key=lambda option: round(option[0], 9))
            total += lost
            sides.append(tuple(side))
        if total < best - 1e-9:
            best, found = total, Rule(cut, (sides[0], sides[1]))
    assert found is not None
    return found


def _sides(
    cases: Sequence[Case], names: Sequence[str], weights: dict[str, float]
) -> Iterator[tuple[float, float, str, str]]:
    """Yield what is lost with the best strategies at each cut-off of size, the cut-off, and both."""
    for cut in SIZES:
        chosen, total = [], 0.0
        for is_many in (False, True):
            inside = [case for case in cases if (case.place[0] >= cut) == is_many]
            sums = {name: sum(weights[c.data] * c.regret[name] for c in inside) for name in names}
            chosen.append(min(sums, key=sums.__getitem__))
            total += sums[chosen[-1]]
        yield total, cut, chosen[0], chosen[1]


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
        place = seen.size.images_per_class_median, similarity_score(seen).value
        yield Case(*key, place, _named(seen), found, regret)


def _evidence(raw: dict[str, Any]) -> Evidence:
    found = {name: Interval(**raw[name]) for name in ("joint", "behind", "shift") if raw[name]}
    size = Size(**{**raw["size"], "gain": Interval(**raw["size"]["gain"])})
    probe = {name: Interval(**value) for name, value in raw["probe"].items()}
    asked = raw["confidence"]
    confidence = Confidence(asked["top"], Interval(**asked["entropy"])) if asked else None
    return Evidence(**{**raw, **found, "size": size, "probe": probe, "confidence": confidence})


def _named(evidence: Evidence) -> str:
    """Return what auto would do, by its name in the bench."""
    verdict = decide(evidence)
    if verdict.strategy == "linear-probe":
        return f"probe {verdict.probe_at or 'last'}"
    if verdict.top_k is None:
        return verdict.strategy
    return f"{verdict.strategy} {'quarter' if verdict.top_k < 0.4 * len(evidence.probe) else 'half'}"


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
    regret = _over_data(cases, lambda case: case.regret[choice(case)])
    behind = _over_data(cases, lambda case: case.regret[choice(case)] - case.regret[case.auto])
    worst = max(cases, key=lambda case: case.regret[choice(case)])
    value = 100 * worst.regret[choice(worst)]
    print(f"| {name} | {regret} | {behind} | {value:.1f} ({worst.data}, {worst.size}) |")


def _over_data(cases: Sequence[Case], value: Callable[[Case], float]) -> str:
    """Return the mean over data sets with its interval, in points."""
    by_data: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        by_data[case.data].append(100 * value(case))
    means = [statistics.mean(values) for values in by_data.values()]
    mean = statistics.mean(means)
    half = T95.get(len(means), 2.2) * statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"


if __name__ == "__main__":
    main()
