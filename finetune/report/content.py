"""What report.html shows, gathered from a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.checkpoint.contents import Environment, Measured, PlanFile, read_as, read_problems
from finetune.checkpoint.race_file import open_race
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.saved import pinned_task
from finetune.evaluation.by_class import ClassFigures
from finetune.report import page
from finetune.report.depth import depth
from finetune.settings import Recipe
from finetune.tasks import TASKS
from finetune.types import EpochLine, to_json


def told(folder: RunFolder) -> dict[str, Any]:
    """Return what report.html shows that stood in a run folder before its first step.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    plan = read_as(PlanFile, folder.plan)
    measured = read_as(Measured, folder.evidence) if folder.evidence.is_file() else None
    return {
        "data": plan.data,
        "notes": plan.notes,
        "phases": plan.phases,
        "sizes": plan.sizes,
        "evidence": measured and measured.evidence,
        "verdict": measured and measured.verdict,
        "depth": depth(to_json(measured.evidence)) if measured else None,
        "race": open_race(folder).model_dump() if folder.race.is_file() else None,
        "problems": read_problems(folder.problems)[:200],
        "versions": read_as(Environment, folder.environment).packages,
    }


def report_content(
    folder: RunFolder,
    recipe: Recipe,
    metrics: dict[str, Any],
    history: Sequence[EpochLine],
    *,
    delivered_epoch: int,
    by_class: Sequence[ClassFigures] = (),
) -> dict[str, Any]:
    """Return what report.html shows, gathered from a run folder; `by_class` is of val.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    return {
        **told(folder),
        "title": f"{Path(recipe.data.path).name}: {recipe.strategy.name} on {recipe.backbone.name}",
        "metrics": metrics,
        "metric_names": list(dict.fromkeys(name for values in metrics.values() for name in values)),
        "strategy": recipe.strategy.name,
        "history": history,
        "delivered_epoch": delivered_epoch,
        "curves": _curves(history),
        "folder": str(folder.path),
        "seed": recipe.train.seed,
        "precision": recipe.train.precision,
        "score": TASKS[pinned_task(recipe)].score,
        "by_class": by_class,
    }


def _curves(history: Sequence[EpochLine]) -> dict[str, Any] | None:
    if len(history) < 2:
        return None
    names = {"train": "train_top1", "val": "score"}
    values = {name: [getattr(row, key) for row in history] for name, key in names.items()}
    there = [value for column in values.values() for value in column if value is not None]
    if not there:
        return None
    low, high = min(there), max(there)
    return {"low": low, "high": high, **{name: page.curve(v, low=low, high=high) for name, v in values.items()}}
