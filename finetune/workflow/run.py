"""The run in prose: prepare, train, evaluate the best, leave a run folder behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint import run_folder, state
from finetune.checkpoint.run_folder import RunFolder, write_json, write_text
from finetune.checkpoint.state import Checkpoint
from finetune.data import split
from finetune.errors import CheckpointError
from finetune.evaluation.forward import collect_logits
from finetune.evaluation.metrics import measure
from finetune.report import page
from finetune.settings import Recipe
from finetune.train.loop import Fit
from finetune.types import Event, Manifest, OnEvent, Split, ignore, to_json
from finetune.workflow import environment, saved
from finetune.workflow.batch_size import with_micro_batch
from finetune.workflow.prepare import (
    Prepared,
    architecture_of,
    load_backbone,
    pixels_of,
    plain_batches,
    plan_phases,
    prepare,
    with_head,
)
from finetune.workflow.refit import FIRST, refit
from finetune.workflow.timed import within_time
from finetune.workflow.training import train

Metrics = dict[str, dict[str, dict[str, float]]]  # by split and name, each with value, low and high


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves: its folder, and the metrics of each split it was measured on."""

    folder: Path
    strategy: str
    metrics: Metrics
    best_epoch: int
    problems: int

    def to_json(self) -> dict[str, Any]:
        """Yield the result as one JSON document."""
        return {**to_json(self), "folder": str(self.folder)}


def run_alone(
    recipe: Recipe, *, out: Path | None = None, manifest: Manifest | None = None, on_event: OnEvent = ignore
) -> RunResult:
    """Train what a recipe says in a new run folder; `manifest` is its data where it was read before.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    began = time.monotonic()
    prepared = prepare(recipe, manifest=manifest, on_event=on_event)
    is_open = recipe.strategy.name == "auto"
    num_images = len(prepared.manifest.samples)
    prepared = within_time(prepared, recipe, may_fall=is_open, num_images=num_images, on_event=on_event)
    prepared = with_micro_batch(prepared, on_event=on_event)
    seconds = {"prepare": time.monotonic() - began}
    folder = lay_folder(prepared, out)
    on_event(Event("message", {"text": f"run folder: {folder.path}"}))
    return _train(folder, prepared, None, seconds=seconds, on_event=on_event)


def resume_alone(
    folder: RunFolder, *, seconds: dict[str, float] | None = None, on_event: OnEvent = ignore
) -> RunResult:
    """Go on with one run from its last checkpoint, to its end; `seconds` is what came before, for timing.json.

    Raises:
        CheckpointError: damaged, or already finished.
    """
    if folder.is_finished:
        raise CheckpointError(f"{folder.path} is finished: there is nothing to resume", hint="See its report.html.")
    prepared, checkpoint = reopen(folder)
    done = len(checkpoint.state.history) if checkpoint else 0
    on_event(Event("message", {"text": f"resuming {folder.path} after {done} epochs"}))
    return _train(folder, prepared, checkpoint, seconds=seconds or {}, on_event=on_event)


def reopen(folder: RunFolder) -> tuple[Prepared, Checkpoint | None]:
    """Yield an unfinished run as it was prepared, and its last checkpoint where there is one.

    Raises:
        CheckpointError: the run folder is damaged.
    """
    recipe = recipes.load(folder.recipe)
    classes = run_folder.read_json(folder.plan)["classes"]
    manifest = split.read(folder.split, root=saved.data_root(recipe), classes=classes)
    backbone = load_backbone(recipe, architecture_of(recipe), num_classes=len(classes))
    phases = plan_phases(recipe, backbone)
    pixels = pixels_of(recipe, manifest, backbone)
    prepared = Prepared(recipe, manifest, with_head(recipe, backbone), phases, None, None, pixels)
    return prepared, state.load(folder.last)


def _train(
    folder: RunFolder,
    prepared: Prepared,
    checkpoint: Checkpoint | None,
    *,
    seconds: dict[str, float],
    on_event: OnEvent,
) -> RunResult:
    began = time.monotonic()
    recipe, backbone = prepared.recipe, prepared.backbone
    trained = train(folder, prepared, checkpoint, on_event=on_event)
    end = trained.state
    seconds["train"] = time.monotonic() - began
    best = state.load(folder.best)
    if best is None or end.best is None:
        raise CheckpointError(f"{folder.best} is gone: the best weights cannot be evaluated")
    backbone.model.load_state_dict(best.model)
    metrics, guesses = _evaluate(prepared, trained.fit, ("val", "test"))
    delivered, refitted = backbone, None
    seconds["evaluate"] = time.monotonic() - began - seconds["train"]
    if recipe.train.refit:
        refitted = refit(folder, prepared, end, on_event=on_event)
        delivered = refitted.prepared.backbone
        later, guessed = _evaluate(refitted.prepared, refitted.fit, ("test",))
        metrics, guesses = (
            {**{f"{name}, {FIRST}": found for name, found in metrics.items()}, **later},
            guesses | guessed,
        )
        seconds["refit"] = time.monotonic() - began - seconds["train"] - seconds["evaluate"]
    saved.write_model(folder.model, delivered, prepared.manifest.classes)
    saved.write_predictions(folder.predictions, prepared.manifest, guesses)
    write_json(
        folder.timing,
        {
            "seconds": seconds,
            "num_train": len(prepared.manifest.split("train")),
            "epochs": len(end.history),
            "training": list(trained.timing),
        },
    )
    content = saved.report_content(folder, recipe, metrics, end.history, best_epoch=end.best.epoch)
    page.write(folder.report, {**content, "computed": list(trained.said), "refit": refitted})
    write_json(folder.metrics, metrics)
    return RunResult(folder.path, recipe.strategy.name, metrics, end.best.epoch, len(prepared.manifest.problems))


def _evaluate(prepared: Prepared, fit: Fit, splits: Sequence[Split]) -> tuple[Metrics, dict[Split, list[int]]]:
    """Measure the model on each split that the data has; yield metrics, and the class guessed for every image."""
    recipe, metrics = prepared.recipe, {}
    guesses: dict[Split, list[int]] = {}
    for name in splits:
        samples = prepared.manifest.split(name)
        if not samples:
            continue
        batches = plain_batches(recipe, prepared.manifest, prepared.backbone, samples, pixels=prepared.pixels)
        logits, targets = collect_logits(fit.model, batches.epoch(), autocast=fit.accelerator.autocast)
        metrics[str(name)] = {key: to_json(value) for key, value in measure(logits, targets).items()}
        guesses[name] = logits.argmax(dim=1).tolist()
    return metrics, guesses


def lay_folder(prepared: Prepared, out: Path | None) -> RunFolder:
    """Make a run folder with all that is known before the first step; the recipe, by which it is one, comes last."""
    recipe, manifest = prepared.recipe, prepared.manifest
    words = (Path(recipe.data.path).stem, prepared.backbone.architecture.label, recipe.strategy.name)
    folder = run_folder.create(out, words=words)
    split.write(manifest, folder.split)
    saved.write_problems(folder.problems, manifest)
    plan = saved.plan_content(prepared.backbone, prepared.phases, manifest)
    write_json(folder.plan, {**plan, "notes": list(prepared.notes)})
    if prepared.evidence is not None and prepared.verdict is not None:
        content = {"evidence": to_json(prepared.evidence), "verdict": to_json(prepared.verdict)}
        write_json(folder.evidence, content)
    write_json(folder.environment, environment.describe())
    header = "The resolved recipe of this run; repeat it with: finetune run --recipe recipe.toml"
    write_text(folder.recipe, recipes.dump(recipe, header=header))
    return folder
