"""What report.html shows, gathered from a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.checkpoint.contents import Environment, Measured, PlanFile, read_as, read_problems
from finetune.checkpoint.race_file import open_race
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.saved import pinned_task
from finetune.data.places import data_name
from finetune.evaluation.by_class import ClassFigures
from finetune.report import charts
from finetune.report.answered import Answered
from finetune.report.depth import depth
from finetune.report.diagnosis import advice
from finetune.report.looked import Eyes
from finetune.settings import Recipe
from finetune.strategy.matrix import CELLS
from finetune.tasks import NUM_FIRST, TASKS
from finetune.types import EpochLine, to_json
from finetune.wording import counted


def told(folder: RunFolder) -> dict[str, Any]:
    """Return what report.html shows that was in a run folder before its first step.

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
        "matrix": CELLS,
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
    answers: Answered | None = None,
    eyes: Eyes | None = None,
    covered: Sequence[tuple[float, float]] = (),
    seconds: Mapping[str, float] | None = None,
    waited: float = 0.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return what report.html shows, gathered from a run folder; `by_class` is of val.

    `answers` are to the split that was measured last; `covered` are shares of val with the accuracy there.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    score = TASKS[pinned_task(recipe)].score
    stood = told(folder)
    return {
        **stood,
        "title": f"{data_name(recipe.data.path)}: {recipe.strategy.name} on {recipe.backbone.name}",
        "metrics": metrics,
        "metric_names": list(dict.fromkeys(name for values in metrics.values() for name in values)),
        "strategy": recipe.strategy.name,
        "history": history,
        "delivered_epoch": delivered_epoch,
        "curves": charts.over_epochs(history, score=score, delivered=delivered_epoch),
        "headline": _headline(recipe, metrics, history, sum((seconds or {}).values())),
        "figures": _figures(metrics),
        "answers": answers,
        "eyes": eyes or Eyes(),
        "reliability": charts.reliability(answers.confidence, answers.hits) if answers else [],
        "coverage": charts.of_shares("share of right answers", covered, x_name="share of val answered")
        if len(covered) > 1
        else None,
        "advice": advice(
            answers,
            history,
            next(reversed(metrics.values()), {}),
            data=recipe.data.path,
            is_head_alone=stood["phases"][-1].plan.trained == ("head",),
            level=str(recipe.augment.level),
            image_size=recipe.backbone.image_size if isinstance(recipe.backbone.image_size, int) else 224,
        ),
        "level": f"augment.level = {recipe.augment.level}",
        "seconds": seconds or {},
        "waited": waited,
        "device": device,
        "folder": str(folder.path),
        "seed": recipe.train.seed,
        "precision": recipe.train.precision,
        "score": score,
        "by_class": by_class,
    }


def _headline(recipe: Recipe, metrics: Mapping[str, Any], history: Sequence[EpochLine], seconds: float) -> str:
    """Return the result in one sentence."""
    what = f"{recipe.strategy.name} on {recipe.backbone.name}"
    trained = f"trained in {seconds:,.0f} s" if seconds else "trained"
    took = counted(len(history), "epoch")
    if not metrics:
        return f"{what}, {trained} ({took}); nothing measured it."
    split, measured = list(metrics.items())[-1]
    name, value = next(iter(measured.items()))
    is_share = name == "top1"
    said = f"gets {value['value']:.1%} of {split} right" if is_share else f"has {name} {value['value']:.3f} on {split}"
    return f"{what}, {trained} ({took}), {said}."


def _figures(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, str]]:
    """Return the first figures of the split that was measured last, with their intervals."""
    if not metrics:
        return []
    split, measured = list(metrics.items())[-1]
    return [
        {
            "name": f"{split} {name}",
            "value": f"{value['value']:.3f}",
            "between": f"{value['low']:.3f} to {value['high']:.3f}",
        }
        for name, value in list(measured.items())[:NUM_FIRST]
    ]
