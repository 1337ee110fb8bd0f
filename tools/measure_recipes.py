"""Measures the shipped recipes, each by the command in its header, and writes what came out into the headers.

    python tools/measure_recipes.py                                       all, on the images of `finetune sample`
    python tools/measure_recipes.py full top-k --seeds 3
    python tools/measure_recipes.py few-similar --also "hymenoptera (...)" --data FOLDER     a line on another set

Every seed is a process of its own with empty caches: the command of the header, with the seed of training and of the
split in place of 0. CPU seconds are counted, since a machine may have other work. All but the lines Data, Machine and
Top1 (or the line of another set) stays as it is, byte for byte. Where the package or a setting of a recipe differs from
the commit nothing is measured: the header would name a commit that did not give the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.sample import CLASSES
from finetune.whole import write_text
from finetune.workflow.recipes import header_of

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
KEYS = ("Purpose", "Command", "Data", "Machine", "Top1", "Source")  # of every header, in this order
ALSO = "Top1 on "  # another set: between Top1 and Source
SAMPLE = "`finetune sample imgs`: {count} drawn images of {classes} classes, Apache-2.0 as this package"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: top1 on its test images, how many there are, how many it was trained on, its CPU seconds."""

    top1: float
    num_test: int
    num_train: int
    seconds: float


def main() -> None:
    """Measure what is asked for and rewrite its headers, one recipe after the other."""
    asked = _options()
    files = [RECIPES / f"{name}.toml" for name in asked.names] or sorted(RECIPES.glob("*.toml"))
    _refuse_changes(files)
    commit = _said("git", "rev-parse", "--short", "HEAD")
    with tempfile.TemporaryDirectory() as place:
        images = Path(asked.data or _drawn(Path(place, "imgs"))).resolve()
        for file in files:
            text = file.read_text(encoding="utf-8")
            outcomes = [measured(header_of(text)["Command"], images, seed) for seed in range(asked.seeds)]
            new = {ALSO + asked.also: figures(outcomes, commit)} if asked.also else facts(outcomes, images, commit)
            write_text(file, rewritten(text, new))
            print(file.stem, *(f"{key}: {value}" for key, value in new.items()), sep="\n  ", flush=True)


def measured(command: str, images: Path, seed: int) -> Outcome:
    """Run the command of a header on some images under a seed, and return what came out on test."""
    with tempfile.TemporaryDirectory() as place:
        words = command_for(command, images, seed=seed, out=Path(place, "run"))
        began = _cpu_seconds()
        environment = {**os.environ, "FINETUNE_CACHE": str(Path(place, "cache")), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)}\n{done.stderr}")
        metrics = json.loads(Path(place, "run", "metrics.json").read_text(encoding="utf-8"))
        with Path(place, "run", "split.csv").open(encoding="utf-8", newline="") as stream:
            splits = [row["split"] for row in csv.DictReader(stream)]
    top1 = metrics["test" if "test" in metrics else "val"]["top1"]["value"]
    return Outcome(top1, splits.count("test") or splits.count("val"), splits.count("train"), _cpu_seconds() - began)


def command_for(command: str, images: Path, *, seed: int, out: Path) -> list[str]:
    """Return the words of a header's command for some images, a seed in place of 0, and a run folder."""
    words = shlex.split(command)
    words[words.index("imgs")] = str(images)
    words[words.index("--seed") + 1] = str(seed)
    words[words.index("split.seed=0")] = f"split.seed={seed}"
    return [*words, "--out", str(out)]


def facts(outcomes: Sequence[Outcome], images: Path, commit: str) -> dict[str, str]:
    """Return what a header says of the runs on the drawn images: Data, Machine, Top1."""
    first, seconds = outcomes[0], statistics.median(outcome.seconds for outcome in outcomes)
    count = sum(1 for _ in images.rglob("*.jpg"))
    drawn = SAMPLE.format(count=count, classes=len(CLASSES))
    return {
        "Data": f"{drawn}; {first.num_train} train, {first.num_test} test",
        "Machine": f"one thread of {_processor()}; {seconds:.0f} CPU seconds a run, the start of Python included",
        "Top1": figures(outcomes, commit),
    }


def figures(outcomes: Sequence[Outcome], commit: str) -> str:
    """Return top1 of some runs in words: the mean, the least and the most."""
    found = [outcome.top1 for outcome in outcomes]
    spread = f"{statistics.mean(found):.3f} [{min(found):.3f}, {max(found):.3f}]"
    return f"{spread} on {outcomes[0].num_test} test images: mean [least, most] of {len(found)} seeds, at {commit}"


def rewritten(text: str, new: Mapping[str, str]) -> str:
    """Return the text of a recipe with some lines of its header in place of those of the same key.

    A line on another set that is not there yet comes before Source. All else stays, byte for byte.
    """
    header = header_of(text)
    lines = text.splitlines(keepends=True)[len(header) :]
    order = [key for key in header if key != "Source"]
    order += [key for key in new if key not in header]
    merged = {**header, **new}
    return "".join([*(f"# {key}: {merged[key]}\n" for key in (*order, "Source")), *lines])


def _drawn(place: Path) -> Path:
    subprocess.run([sys.executable, "-m", "finetune", "sample", str(place)], check=True, stdout=subprocess.DEVNULL)
    return place


def _cpu_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processor() -> str:
    """Return what the processor calls itself."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _refuse_changes(files: Sequence[Path]) -> None:
    changed = [_said("git", "status", "--porcelain", "--", "finetune")]
    for file in files:
        committed = _said("git", "show", f"HEAD:recipes/{file.name}")
        if tomllib.loads(committed) != tomllib.loads(file.read_text(encoding="utf-8")):
            changed.append(f"recipes/{file.name}")
    if any(changed):
        raise SystemExit("\n".join(["commit first, so that the headers name what gave their figures:", *changed]))


def _said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes (all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", help="another set than the drawn one, with --also")
    parser.add_argument("--also", metavar="NAME", help="what the header calls the set of --data, with its licence")
    asked = parser.parse_args()
    if (asked.data is None) != (asked.also is None):
        parser.error("--data and --also go together")
    if ": " in (asked.also or ""):
        parser.error("--also: a colon ends the key of a header")
    return asked


if __name__ == "__main__":
    main()
