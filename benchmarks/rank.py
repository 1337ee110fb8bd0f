"""Does the ranking of backbones agree with the order after real training?

    python benchmarks/rank.py --data imgs --data more --data others \\
        --candidate weights/a --candidate weights/a@96 --candidate weights/b --random mobilenetv2_035@96

For each data set: ranks the candidates (`finetune backbones rank`), then trains each one (`--strategy`,
`--epochs`, `--seeds`) on the same split, and tells how well each score agrees with top1 on test: weighted
Kendall's tau (1 the same order, 0 none, -1 the reverse; the top counts most), and regret: the points that
are lost by training only what the score names best, or what the tool recommends. `--random NAME` adds a
network with random weights.

Everything measured is appended to build/rank.jsonl: a stopped benchmark goes on where it was. Timings are
not kept; `--images N` takes N images of each set, to try the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from finetune import recipe as recipes
from finetune.backbone import folder as timm_folder
from finetune.backbone import load as backbones
from finetune.images.names import is_image_name
from finetune.prepare.asked import recipe_of
from finetune.prepare.candidates import candidate_recipe, labelled

BUILD = Path(__file__).parents[1] / "build"
SCORES = ("predicted_top1", "knn_top1", "logme", "h_score", "gmacs")
SPLIT = {"split.val": 0.2, "split.test": 0.2, "split.seed": 0}

Record = dict[str, Any]


def weighted_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the weighted Kendall's tau of two lists; nan where one of them is all ties.

    A pair counts 1 / (r + 1) + 1 / (s + 1) for the ranks r, s of its two, by `one` and by `other` in
    turn; the mean of both is taken. Source: Vigna 2015, A weighted correlation index for rankings with
    ties, WWW; the default of scipy.stats.weightedtau.
    """

    def by(first: np.ndarray, second: np.ndarray) -> float:
        rank = np.empty(len(first))
        rank[np.lexsort((second, first))[::-1]] = np.arange(len(first))
        agreed = spread_one = spread_other = 0.0
        for i, j in combinations(range(len(first)), 2):
            weight = 1 / (rank[i] + 1) + 1 / (rank[j] + 1)
            left, right = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
            agreed += weight * left * right
            spread_one += weight * abs(left)
            spread_other += weight * abs(right)
        spread = np.sqrt(spread_one * spread_other)
        return float(agreed / spread) if spread else float("nan")

    x, y = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return (by(x, y) + by(y, x)) / 2


class Results:
    """What was measured so far, in a file of JSON lines; a record is found again by its key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        if lines and not lines[-1].endswith("\n"):  # it was stopped while it wrote
            file.write_text("".join(lines[:-1]), encoding="utf-8")
            lines.pop()
        self.records: list[Record] = [json.loads(line) for line in lines]

    def find(self, key: Record) -> Record | None:
        """Return the record of a key, if there is one."""
        return next((record for record in self.records if record["key"] == key), None)

    def add(self, key: Record, found: Record) -> Record:
        """Append a record."""
        record = {"key": key, **found}
        self.records.append(record)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        return record


def ranked(results: Results, data: Path, candidates: Sequence[str], chosen: argparse.Namespace) -> Record:
    """Return the ranking of the candidates on a data set, as `--json` prints it."""
    key = {"data": data.name, "candidates": list(candidates), "sample": chosen.sample, **SPLIT}
    record = results.find(key)
    if record is None:
        found = finetune.rank(data, candidates, sample=chosen.sample, overrides=overrides(chosen)).to_json()
        if found["failed"]:
            raise finetune.BackboneError(f"{data}: candidates that cannot be used: {found['failed']}")
        record = results.add(key, found)
    return record


def trained(results: Results, data: Path, name: str, seed: int, chosen: argparse.Namespace) -> float:
    """Return top1 on test of one candidate after training."""
    key = {"data": data.name, "candidate": name, "strategy": chosen.strategy, "epochs": chosen.epochs, **SPLIT}
    key["seed"] = seed
    record = results.find(key)
    if record is None:
        base = recipe_of(settings={"data": data, "seed": seed}, overrides=overrides(chosen))
        changes = {"strategy.name": chosen.strategy, "train.epochs": chosen.epochs}
        recipe = recipes.update(candidate_recipe(base, name), changes)
        with tempfile.TemporaryDirectory() as place:
            metrics = finetune.run(recipe=recipe, out=Path(place) / "run").metrics
        record = results.add(key, {"top1": metrics["test"]["top1"]})
        print(f"{data.name}, {name}, seed {seed}: top1 {record['top1']['value']:.3f}", file=sys.stderr, flush=True)
    return float(record["top1"]["value"])


def overrides(chosen: argparse.Namespace) -> Record:
    """Return the keys of the recipe that ranking and training share."""
    return {**SPLIT, "train.workers": chosen.workers, "train.device": chosen.device}


def random_weights(name: str) -> str:
    """Write a folder with a timm network at random, once, and yield it as a candidate."""
    bare, at, size = name.partition("@")
    folder = BUILD / "random" / f"random-{bare}"
    if not timm_folder.is_folder(folder):
        made = backbones.load(backbones.architecture(bare, pretrained=False), num_classes=2)
        timm_folder.write(
            made.model, folder, architecture=bare, model_args=made.model_args, preprocessing=made.preprocessing,
            classes=("a", "b"), pretrained_cfg={},
        )  # fmt: skip
    return f"{folder}{at}{size}"


def some_images(data: Path, count: int) -> Path:
    """Return a folder of links to so many images of a folder, evenly drawn from the sorted ones."""
    place = BUILD / "some" / f"{data.name}-{count}"
    files = sorted(file for file in data.rglob("*") if is_image_name(file.name))
    for index in range(min(count, len(files))):
        file = files[index * len(files) // min(count, len(files))]
        link = place / file.relative_to(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    return place


def value(record: Record, score: str) -> float:
    """Return a score of a candidate as a number."""
    return float(record[score]["value"] if isinstance(record[score], dict) else record[score])


def agreement(ranking: Record, accuracy: dict[str, float]) -> Iterator[tuple[str, float, float]]:
    """Yield the weighted tau of each score with the accuracies, and its regret; last what the tool says to take."""
    scores, best = ranking["candidates"], max(accuracy.values())
    reached = [accuracy[record["name"]] for record in scores]
    for score in SCORES:
        values = [value(record, score) for record in scores]
        yield score, weighted_tau(values, reached), best - reached[int(np.argmax(values))]
    yield "recommended", float("nan"), best - accuracy[ranking["recommended"]]
    yield "best of the shortlist", float("nan"), best - max(accuracy[name] for name in ranking["shortlist"])


def report(table: dict[str, list[tuple[str, float, float]]]) -> None:
    """Print weighted tau and regret in points, a row for each score and a column for each data set."""
    print("\n| weighted tau (regret) |", " | ".join(table), "| mean |")
    print("| --- |", " | ".join("---" for _ in range(len(table) + 1)), "|")
    for cells in zip(*table.values(), strict=True):
        pairs = [(tau, regret) for _, tau, regret in cells]
        known = [tau for tau, _ in pairs if not np.isnan(tau)]
        mean = (statistics.mean(known) if known else float("nan"), statistics.mean(regret for _, regret in pairs))
        shown = [("" if np.isnan(tau) else f"{tau:+.2f} ") + f"({100 * regret:.1f})" for tau, regret in (*pairs, mean)]
        print("|", cells[0][0], "|", " | ".join(shown), "|")


def arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, type=Path)
    parser.add_argument("--candidate", action="append", default=[], metavar="NAME[@PIXELS]")
    parser.add_argument("--random", action="append", default=[], metavar="NAME[@PIXELS]")
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sample", type=int, default=1000)
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=BUILD / "rank.jsonl")
    return parser.parse_args()


def main() -> None:
    """Rank, train and compare."""
    chosen = arguments()
    results = Results(chosen.out)
    names = [*chosen.candidate, *map(random_weights, chosen.random)]
    table = {}
    for data in chosen.data:
        data = some_images(data, chosen.images) if chosen.images else data
        ranking = ranked(results, data, names, chosen)
        accuracy = {
            label: statistics.mean(trained(results, data, name, seed, chosen) for seed in range(chosen.seeds))
            for label, name in labelled(names).items()
        }
        print(f"\n| {data.name} |", " | ".join(SCORES), f"| top1 after {chosen.strategy} |")
        print("| --- |", " | ".join("---" for _ in range(len(SCORES) + 1)), "|")
        for record in ranking["candidates"]:
            shown = " | ".join(f"{value(record, score):.3f}" for score in SCORES)
            print("|", record["name"], "|", shown, "|", f"{accuracy[record['name']]:.3f}", "|", flush=True)
        table[data.name] = list(agreement(ranking, accuracy))
    report(table)


if __name__ == "__main__":
    main()
