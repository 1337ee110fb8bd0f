"""The results of a comparison's runs: each against the best, on the same images, seed by seed.

Letters: S seeds, N images.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune import recipe as recipes
from finetune.checkpoint.comparison import seconds_by_epoch
from finetune.checkpoint.contents import PlanFile, read_as
from finetune.checkpoint.run_folder import RunFolder, read_classes
from finetune.checkpoint.saved import GUESS_COLUMNS as COLUMNS
from finetune.checkpoint.saved import pinned_task
from finetune.csv_cells import unguarded_cell
from finetune.data import split
from finetune.data.split import units_of
from finetune.errors import CheckpointError
from finetune.evaluation.compared import COMPARED
from finetune.strategy.strategies import is_pretrained as begins_pretrained
from finetune.tasks import TASKS, Task
from finetune.train.delivery import delivered
from finetune.types import Interval, Sample


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """An epoch on val, and after how many seconds of the run it was over."""

    epoch: int
    score: float  # top1, mAP or r2
    val_loss: float
    seconds: float


Curve = tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished run: what it said of each image, what is right, and its epochs.

    `said` and `right` are class names (N,); of several classes probabilities and 0 or 1 (N, K); of a number (N, 1).
    """

    seed: int
    strategy: str
    split: str
    files: tuple[str, ...]
    said: NDArray[Any]
    right: NDArray[Any]
    delivered_epoch: int
    num_trained: int
    curve: Curve
    task: Task = "classify"
    units: tuple[int, ...] | None = None  # copies and groups share a number
    digests: tuple[str, ...] = ()  # what the files hold


@dataclass(frozen=True, slots=True)
class Standing:
    """One strategy over its seeds; `difference` is the best one's score minus its own, None for the best."""

    label: str
    strategy: str
    score: Interval
    seeds: tuple[int, ...]
    seconds: float
    num_trained: int
    delivered_epochs: tuple[int, ...]
    curves: tuple[Curve, ...]
    difference: Interval | None = None
    metric: str = "top1"  # what the score is

    @property
    def is_told_apart(self) -> bool:
        """Whether the best one is better beyond chance."""
        return self.difference is not None and self.difference.low > 0


def finished(folder: RunFolder, clock: Path | None = None, *, seed: int) -> Finished:
    """Return a finished run as it was judged: on test, or on val if there is no test.

    An epoch that the run did on its own, outside the comparison, counts as taking no time.

    Raises:
        CheckpointError: something in its folder is missing or damaged.
    """
    plan, recipe = read_as(PlanFile, folder.plan), recipes.load(folder.recipe)
    trained = {name for phase in plan.phases for name in phase.plan.trained}
    at = seconds_by_epoch(clock) if clock else {}
    try:
        with folder.predictions.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = [{key: unguarded_cell(cell or "") for key, cell in row.items()} for row in csv.DictReader(stream)]
        root, classes, task = str(folder.path), read_classes(folder), pinned_task(recipe)
        kept = {
            sample.file: sample for sample in split.read(folder.split, root=root, classes=classes, task=task).samples
        }
        unit = dict(zip(kept, units_of([*kept.values()]), strict=True))
        lines = [json.loads(line) for line in folder.epochs.read_text(encoding="utf-8").splitlines()]
        curve = tuple(
            CurvePoint(
                line["epoch"],
                line["val_top1"] if task == "classify" else line["scores"][TASKS[task].score],
                line["val_loss"],
                seconds=max((at[epoch] for epoch in at if epoch <= line["epoch"]), default=0.0),
            )
            for line in lines
        )
        name = "test" if any(row["split"] == "test" for row in rows) else "val"
        judged = [row for row in rows if row["split"] == name]
        said, right = ANSWERED[task](judged, kept)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder.path} cannot be read: {error}") from error
    return Finished(
        seed=seed,
        strategy=recipe.strategy.name,
        split=name,
        files=tuple(row["file"] for row in judged),
        said=said,
        right=right,
        delivered_epoch=delivered(curve, sum(row["split"] == "val" for row in rows)),
        num_trained=sum(plan.sizes[name] for name in trained),
        curve=curve,
        task=task,
        units=tuple(unit.get(row["file"], -place) for place, row in enumerate(judged, 1)),
        digests=tuple(kept[row["file"]].digest for row in judged),
    )


Rows = Sequence[Mapping[str, str]]  # of predictions.csv
Answered = tuple[NDArray[Any], NDArray[Any]]  # what was said, and what is right


def _classes(rows: Rows, kept: Mapping[str, Sample]) -> Answered:
    return np.array([row["predicted"] for row in rows]), np.array([row["class"] for row in rows])


def _sets(rows: Rows, kept: Mapping[str, Sample]) -> Answered:
    said = np.array([[float(cell) for cell in [*row.values()][len(COLUMNS) :]] for row in rows])
    right = np.zeros(said.shape)
    for place, row in enumerate(rows):
        right[place, list(kept[row["file"]].target.classes)] = 1
    return said, right


def _numbers(rows: Rows, kept: Mapping[str, Sample]) -> Answered:
    said, right = ([[float(row[column])] for row in rows] for column in ("predicted", "class"))
    return np.array(said), np.array(right)


ANSWERED: dict[Task, Callable[[Rows, Mapping[str, Sample]], Answered]] = {
    "classify": _classes,
    "multilabel": _sets,
    "regress": _numbers,
}


def standings(runs: Mapping[str, Sequence[Finished]]) -> tuple[Standing, ...]:
    """Return the strategies, the best first: by score, and among equals by fewer trained parameters.

    A difference is taken on the seeds that both have.

    Raises:
        CheckpointError: two runs were judged on other images.
    """
    own = {label: tuple(of_label) for label, of_label in runs.items() if of_label}
    if len({run.files for of_label in own.values() for run in of_label}) > 1:
        raise CheckpointError(
            "the runs of this comparison were judged on different images: the data has changed since",
            hint="Start a new comparison.",
        )
    order = sorted(
        (_standing(label, of_label) for label, of_label in own.items()),
        key=lambda standing: (-standing.score.value, standing.num_trained, standing.seconds),
    )
    return tuple(
        standing
        if standing is order[0]
        else replace(standing, difference=_difference(own[order[0].label], own[standing.label]))
        for standing in order
    )


def sentences(standings: Sequence[Standing], *, is_pretrained: bool) -> list[str]:
    """Return what the standings mean, in sentences: the best, what equals it, the gain of pretraining."""
    if not standings:
        return []
    best, others = standings[0], standings[1:]
    same = [standing.label for standing in others if not standing.is_told_apart]
    text = f"{best.label} is best with {best.score.value:.3f}"
    if len(standings) > 1 and not same:
        text += ", and better than each of the others beyond chance"
    said = [text]
    if same:
        said.append(f"cannot be told apart from it on these images: {', '.join(same)}")
    if max(len(standing.seeds) for standing in standings) == 2:
        said.append("two seeds say little about seeds, hence the wide intervals: use three or more")
    scratch = next((standing for standing in standings if not begins_pretrained(standing.strategy)), None)
    rival = next((standing for standing in standings if begins_pretrained(standing.strategy)), None)
    if scratch and rival and is_pretrained:
        said.append(_pretraining(rival, scratch))
    return said


def _standing(label: str, runs: Sequence[Finished]) -> Standing:
    strategies = list(dict.fromkeys(run.strategy for run in runs))
    return Standing(
        label=label,
        strategy=" or ".join(strategies),
        score=COMPARED[runs[0].task].score(np.stack([run.said for run in runs]), runs[0].right, runs[0].units),
        seeds=tuple(run.seed for run in runs),
        seconds=mean(run.curve[-1].seconds for run in runs),
        num_trained=max(run.num_trained for run in runs),
        delivered_epochs=tuple(run.delivered_epoch for run in runs),
        curves=tuple(run.curve for run in runs),
        metric=TASKS[runs[0].task].score,
    )


def _difference(best: Sequence[Finished], other: Sequence[Finished]) -> Interval | None:
    both = sorted({run.seed for run in best} & {run.seed for run in other})
    if not both:
        return None
    said, others = (np.stack([next(r.said for r in runs if r.seed == seed) for seed in both]) for runs in (best, other))
    return COMPARED[best[0].task].difference(said, others, best[0].right, best[0].units)


def _pretraining(rival: Standing, scratch: Standing) -> str:
    """Return how the best pretrained strategy rose and ended compared with scratch."""
    goal = median(max(row.score for row in curve) for curve in scratch.curves)
    ways = [_reached(standing.curves, goal) for standing in (rival, scratch)]
    if ways[0] is None:
        text = f"{rival.label}, pretrained, did not reach the val {rival.metric} of scratch, {goal:.3f}"
    else:
        text = f"{rival.label}, pretrained, reached the best val {rival.metric} of scratch, {goal:.3f}, after {ways[0]}"
        text += f"; scratch after {ways[1]}" if ways[1] else ""
    end = f"{rival.score.value:.3f} against {scratch.score.value:.3f}"
    lead = rival.score.value - scratch.score.value
    gap = scratch.difference if rival.difference is None else rival.difference
    if gap is None or gap.low <= 0:
        return f"{text}; in the end it is no higher beyond chance: {end}"
    return f"{text}; in the end it is {'higher' if lead > 0 else 'lower'}: {end}"


def _reached(curves: Sequence[Curve], goal: float) -> str | None:
    """Return the epochs and seconds, in the median over seeds, after which val reached a goal."""
    firsts = [next((row for row in curve if row.score >= goal), None) for curve in curves]
    there = [row for row in firsts if row is not None]
    if len(there) * 2 <= len(firsts):
        return None
    epochs, seconds = (median(getattr(row, key) for row in there) for key in ("epoch", "seconds"))
    return f"{epochs:g} epoch{'s' if epochs != 1 else ''} ({seconds:.0f} s)"
