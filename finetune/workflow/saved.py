"""What a run folder holds, written and read back: the model, the plan, the problems, the lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune import recipe as recipes
from finetune.backbone import folder as timm_folder
from finetune.backbone import load as backbones
from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier
from finetune.backbone.weights import first_line
from finetune.cells import guarded
from finetune.checkpoint import run_folder
from finetune.checkpoint.contents import PROBLEMS, Environment, Measured, Plan, read_as, read_problems
from finetune.checkpoint.racing import open_race
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import written_beside
from finetune.data import split
from finetune.device import in_fast_layout, resolve_device
from finetune.errors import CheckpointError, RecipeError
from finetune.report import page
from finetune.report.depth import depth
from finetune.settings import Recipe
from finetune.types import Evidence, Manifest, Split, Verdict, to_json
from finetune.whole import write_text
from finetune.workflow import prepare
from finetune.workflow.prepare import Prepared


@dataclass(slots=True)
class SavedRun:
    """A finished run, loaded: its model with class names and preprocessing, its recipe."""

    folder: RunFolder
    recipe: Recipe
    backbone: Backbone
    classes: tuple[str, ...]

    def manifest(self) -> Manifest:
        """Yield the data that the run was trained on, as split.csv pins it; what a refit took of val is train."""
        found = split.read(self.folder.split, root=data_root(self.recipe), classes=self.classes)
        return split.val_in_train(found) if self.recipe.train.refit else found


def load_run(path: str | Path, *, device: str = "auto") -> SavedRun:
    """Load the model of a finished run.

    Raises:
        CheckpointError: no run folder, or a run that has no model yet.
    """
    folder = run_folder.open_run(path)
    weights = folder.model / timm_folder.WEIGHTS
    if folder.comparison.is_file():
        raise CheckpointError(
            f"{folder.path} is a comparison of several runs",
            hint=f"Name one of its runs: {folder.path / 'runs'}/NAME.",
        )
    if not folder.is_finished or not weights.is_file():
        raise CheckpointError(
            f"{folder.path} has no model yet: the run did not come to its end",
            hint=f"Go on with it: {folder.resuming}",
        )
    recipe = _on(device, recipes.update(recipes.load(folder.recipe), {"train.device": device}), folder)
    config = timm_folder.read_config(folder.model)
    of = replace(backbones.architecture("auto", weights=folder.model), pretrained=False)
    backbone = prepare.with_range(backbones.load(of, num_classes=len(config.classes)), config.value_range)
    try:
        backbone = prepare.cut_at(backbone, config.probe_at) if config.probe_at else backbone
    except RecipeError as error:
        raise CheckpointError(
            f"{folder.model / timm_folder.CONFIG} names a layer group that is none: {config.probe_at}"
        ) from error
    try:
        backbone.model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights} cannot be used: {first_line(error)}") from error
    in_fast_layout(backbone.model, resolve_device(device)).eval()
    return SavedRun(folder, recipe, backbone, config.classes)


def _on(device: str, recipe: Recipe, folder: RunFolder) -> Recipe:
    """Return the recipe of a run for a device: what was settled for a GPU, a processor computes in float32.

    A run that was computed on a processor keeps the arithmetic that it asked for.
    """
    if resolve_device(device).type != "cpu" or recipe.train.precision == "float32":
        return recipe
    environment = run_folder.read_json(folder.environment) if folder.environment.is_file() else {}
    devices = (environment.get("devices") if isinstance(environment, dict) else None) or {}
    is_of_cpu = recipe.train.precision == "bfloat16" and not any(name != "cpu" for name in devices)
    return recipe if is_of_cpu else recipes.update(recipe, {"train.precision": "float32"})


def write_model(place: Path, backbone: Backbone, classes: Sequence[str]) -> None:
    """Write the model as a timm folder; a probe at an inner layer group says so in its config.json."""
    with written_beside(place, keeps_before=False) as beside:
        timm_folder.write(
            backbone.model,
            beside,
            architecture=backbone.architecture.registered,
            model_args=backbone.model_args,
            preprocessing=backbone.preprocessing,
            classes=classes,
            pretrained_cfg=getattr(backbone.model, "pretrained_cfg", {}),
            probe_at=backbone.model.at if isinstance(backbone.model, StagedClassifier) else None,
        )


def data_root(recipe: Recipe) -> str:
    """Yield the folder that the files of split.csv are relative to."""
    path = Path(recipe.data.path)
    return str(path if path.is_dir() else path.parent)


def plan_content(prepared: Prepared) -> dict[str, Any]:
    """Yield plan.json: classes, layer groups, every phase with its freeze plan, and what is to be said of it."""
    manifest = prepared.manifest
    return {
        "classes": list(manifest.classes),
        "data": prepare.describe_data(manifest),
        "groups": [{"name": g.name, "num_parameters": g.num_parameters} for g in prepared.backbone.groups],
        "phases": [to_json(phase) for phase in prepared.phases],
        "notes": list(prepared.notes),
    }


def write_problems(path: Path, manifest: Manifest) -> None:
    """Write problems.csv: every image that was left out, and why."""
    _write_table(path, PROBLEMS, ((problem.file, problem.reason) for problem in manifest.problems))


def write_predictions(path: Path, manifest: Manifest, guesses: Mapping[Split, Sequence[int]]) -> None:
    """Write predictions.csv: for every measured image its split, its class, and the class that was named."""
    rows = (
        (sample.file, name, manifest.classes[sample.target.index], manifest.classes[guess])
        for name, guessed in guesses.items()
        for sample, guess in zip(manifest.split(name), guessed, strict=True)
    )
    _write_table(path, ("file", "split", "class", "predicted"), rows)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(map(guarded, row) for row in rows)
    write_text(path, text.getvalue())


def line(row: dict[str, Any]) -> str:
    """Yield one line of metrics.jsonl."""
    return json.dumps(row, ensure_ascii=False)


def evidence_content(recipe: Recipe, evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """Yield what evidence.json holds: what was measured, what follows, and the numbers that it is done with."""
    numbers = {
        "top_k": recipe.strategy.top_k,
        "probe_at": recipe.strategy.probe_at,
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "lr": recipe.optim.lr,
        "layer_decay": recipe.optim.layer_decay,
        "weight_decay": recipe.optim.weight_decay,
    }
    return {"evidence": to_json(evidence), "verdict": {**to_json(verdict), "numbers": numbers}}


def told(folder: RunFolder) -> dict[str, Any]:
    """Yield what report.html shows that stood in a run folder before its first step.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    plan = read_as(Plan, folder.plan)
    found = read_as(Measured, folder.evidence) if folder.evidence.is_file() else None
    return {
        "data": plan.data,
        "notes": plan.notes,
        "phases": plan.phases,
        "sizes": plan.sizes,
        "evidence": found and found.evidence,
        "verdict": found and found.verdict,
        "depth": depth(to_json(found.evidence)) if found else None,
        "race": open_race(folder) if folder.race.is_file() else None,
        "problems": read_problems(folder.problems)[:200],
        "versions": read_as(Environment, folder.environment).packages,
    }


def report_content(
    folder: RunFolder,
    recipe: Recipe,
    metrics: dict[str, Any],
    history: Sequence[dict[str, Any]],
    *,
    delivered_epoch: int,
) -> dict[str, Any]:
    """Gather what report.html shows from a run folder.

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
    }


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if len(history) < 2:
        return None
    names = {"train": "train_top1", "val": "val_top1"}
    values = {name: [row[key] for row in history] for name, key in names.items()}
    there = [value for column in values.values() for value in column if value is not None]
    low, high = min(there), max(there)
    return {"low": low, "high": high, **{name: page.curve(v, low=low, high=high) for name, v in values.items()}}
