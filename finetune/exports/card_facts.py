"""What a model card says of a run, gathered from its folder; no path of the machine is among it."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint.contents import Environment, Measured, PlanFile, read_as
from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.checkpoint.saved import SavedRun
from finetune.data.places import data_name
from finetune.errors import CheckpointError
from finetune.evaluation.metrics import CALIBRATED_BY, TASK_METRICS
from finetune.settings import Recipe
from finetune.tasks import TASKS
from finetune.types import SPLITS
from finetune.wording import counted, listed

FEW = 20  # images of a class that were judged: below, its share says little
PATHS = ("data.path", "backbone.weights", "cache.folder")
Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run in words and rows of tables; `judged` is the split that was measured last."""

    headline: str
    data: str
    data_name: str
    counts: tuple[Row, ...]
    network: str
    strategy: str
    verdict: str
    total: str
    phases: tuple[Row, ...]
    splits: tuple[str, ...]
    measured: Mapping[str, Mapping[str, Mapping[str, float]]]
    metrics: tuple[Row, ...]
    judged: str
    by_class: tuple[Row, ...]
    calibration: str
    limits: tuple[str, ...]
    recipe: str
    versions: str


def run_facts(saved: SavedRun) -> RunFacts:
    """Return what a run's folder says of it.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    folder, recipe, manifest = saved.folder, saved.recipe, saved.manifest()
    plan = read_as(PlanFile, folder.plan)
    measured = read_json(folder.metrics)
    evidence = read_as(Measured, folder.evidence) if folder.evidence.is_file() else None
    counts = {split: manifest.counts(split) for split in SPLITS}
    judged = next(reversed(measured), "")
    sizes = plan.sizes
    rows = _by_class(folder, judged) if saved.task == "classify" and judged else ()
    return RunFacts(
        headline=_headline(saved, measured),
        data=f"{data_name(recipe.data.path)}: {plan.data}",
        data_name=data_name(recipe.data.path),
        counts=tuple((in_markdown(name), *(str(counts[split][name]) for split in SPLITS)) for name in saved.classes),
        network=_network(saved),
        strategy=recipe.strategy.name,
        verdict=evidence.verdict.reason if evidence else "",
        total=f"{sum(sizes.values()):,}",
        phases=tuple(
            (
                phase.name,
                str(phase.epochs),
                _span(phase.plan.trained),
                f"{sum(sizes[name] for name in phase.plan.trained):,}",
            )
            for phase in plan.phases
        ),
        splits=tuple(measured),
        measured=measured,
        metrics=_metrics(saved, measured),
        judged=judged,
        by_class=tuple(rows),
        calibration=_calibration(measured.get(judged, {})),
        limits=_limits(saved, measured, judged, rows),
        recipe=_without_paths(recipe),
        versions=_versions(folder),
    )


def _network(saved: SavedRun) -> str:
    height, width = saved.backbone.preprocessing.image_size
    return f"{saved.backbone.architecture.registered} at {height} x {width} pixels"


def _headline(saved: SavedRun, measured: Mapping[str, Any]) -> str:
    if not measured:
        return ""
    split, values = list(measured.items())[-1]
    name = TASKS[saved.task].score
    found = values[name]
    return f"On {split} its {name} is {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]."


def _metrics(saved: SavedRun, measured: Mapping[str, Any]) -> tuple[Row, ...]:
    names = dict.fromkeys(name for values in measured.values() for name in values)
    known = TASK_METRICS[saved.task]
    return tuple(
        (
            name,
            known[name].meaning if name in known else "",
            *(_interval(values.get(name)) for values in measured.values()),
        )
        for name in names
    )


def _interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _by_class(folder: RunFolder, judged: str) -> list[Row]:
    """Return how many images of each class in a split were judged and right, and what it was mostly taken for."""
    taken: dict[str, Counter[str]] = defaultdict(Counter)
    if not folder.predictions.is_file():  # its owner has removed it
        return []
    try:
        with folder.predictions.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["split"] == judged:
                    taken[row["class"]][row["predicted"]] += 1
    except (KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(
            f"{folder.predictions} is damaged: {error!r}", hint="Remove it to leave out the table of classes."
        ) from error
    rows: list[Row] = []
    for name, guesses in sorted(taken.items()):
        total, right = guesses.total(), guesses[name]
        others = [(guess, count) for guess, count in guesses.most_common() if guess != name]
        mostly = f"{in_markdown(others[0][0])} ({others[0][1]})" if others else ""
        rows.append((in_markdown(name), str(total), f"{right} ({right / total:.0%})", mostly))
    return rows


def _calibration(values: Mapping[str, Mapping[str, float]]) -> str:
    if CALIBRATED_BY not in values:
        return ""
    return (
        f"The expected calibration error is {_interval(values[CALIBRATED_BY])}: how far, on average, the probability"
        " of an answer is from the share of such answers that are right."
    )


def _limits(saved: SavedRun, measured: Mapping[str, Any], judged: str, rows: Sequence[Row]) -> tuple[str, ...]:
    limits = []
    knows = f"It knows {counted(len(saved.classes), 'class', 'classes')}"
    if saved.task != "regress":
        limits.append(
            f"{knows} and names one of them whatever an image shows: for other things its answers mean nothing."
            if saved.task == "classify"
            else f"{knows}; it says nothing about other things."
        )
    few = [row[0] for row in rows if int(row[1]) < FEW]
    if few:
        limits.append(f"Judged on fewer than {FEW} images each, so their shares say little: {listed(few)}.")
    if judged == "val" or not judged:
        limits.append(
            "There was no test split: its epoch was chosen on the images it is measured on, which is optimistic."
            if judged
            else "It was not measured on any image outside its training data."
        )
    limits.append("Images unlike those trained on (camera, light, origin) were not measured.")
    return tuple(limits)


def _without_paths(recipe: Recipe) -> str:
    """Return a recipe as TOML, of whose paths only the last part is left."""
    changes = {
        key: Path(value).name
        for key in PATHS
        if isinstance(value := recipes.value(recipe, key), str) and value not in ("auto", "none")
    }
    return recipes.dump(recipes.update(recipe, changes)).strip()


def _versions(folder: RunFolder) -> str:
    there = read_as(Environment, folder.environment)
    return ", ".join(f"{name} {number}" for name, number in asdict(there.packages).items()) + "."


def _span(names: Sequence[str]) -> str:
    return " ... ".join(dict.fromkeys((names[0], names[-1]))) if names else "nothing"


def in_markdown(text: str) -> str:
    """Return a name as it can stand in Markdown, in a table, too."""
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.splitlines()))
