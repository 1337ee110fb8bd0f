"""The run in prose: prepare, train, evaluate the best, leave a run folder behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune import recipe as recipes
from finetune.backbone.folder import plain_tensors
from finetune.checkpoint import run_folder, state
from finetune.checkpoint.run_folder import RunFolder, write_json, write_text
from finetune.checkpoint.state import Checkpoint, TrainState
from finetune.data import split
from finetune.device import accelerator, resolve_device
from finetune.errors import CheckpointError
from finetune.evaluation.forward import collect_logits
from finetune.evaluation.metrics import measure
from finetune.report import page
from finetune.settings import Recipe
from finetune.strategy.strategies import retrained
from finetune.train.loop import Fit, FitSettings
from finetune.train.phases import fit_phases
from finetune.types import SPLITS, Event, OnEvent, ignore, to_json
from finetune.workflow import environment, saved
from finetune.workflow.batch_size import with_micro_batch
from finetune.workflow.batches import Worker
from finetune.workflow.prepare import (
    Prepared,
    architecture_of,
    load_backbone,
    pixels_of,
    plain_batches,
    plan_phases,
    prepare,
    recipe_of,
    with_head,
)
from finetune.workflow.signals import Stop, stop_on_signals


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves: its folder, and the metrics of each split it was measured on."""

    folder: Path
    strategy: str
    metrics: dict[str, dict[str, dict[str, float]]]
    best_epoch: int
    problems: int

    def to_json(self) -> dict[str, Any]:
        """Yield the result as one JSON document."""
        return {**to_json(self), "folder": str(self.folder)}


def run(
    data: str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> RunResult:
    """Train a classifier on a folder of images (or a table) and leave a run folder.

        finetune.run("imgs", strategy="head-only", backbone="resnet18", epochs=5)

    `settings` are the flags of `finetune run`, `overrides` any key of the recipe by its dotted name.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    chosen = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    if out is not None:
        run_folder.check_new(Path(out))
    began = time.monotonic()
    prepared = with_micro_batch(prepare(chosen, on_event=on_event), on_event=on_event)
    seconds = {"prepare": time.monotonic() - began}
    folder = _lay_folder(prepared, None if out is None else Path(out))
    on_event(Event("message", {"text": f"run folder: {folder.path}"}))
    return _train(folder, prepared, None, seconds=seconds, on_event=on_event)


def resume(path: str | Path, *, on_event: OnEvent = ignore) -> RunResult:
    """Go on with an interrupted run from its last checkpoint, as if it had never stopped.

    Raises:
        CheckpointError: no run folder, damaged, or already finished.
    """
    folder = run_folder.open_run(path)
    if folder.is_finished:
        raise CheckpointError(f"{folder.path} is finished: there is nothing to resume", hint="See its report.html.")
    recipe = recipes.load(folder.recipe)
    classes = run_folder.read_classes(folder)
    manifest = split.read(folder.split, root=saved.data_root(recipe), classes=classes)
    backbone = load_backbone(recipe, architecture_of(recipe), num_classes=len(classes))
    phases = plan_phases(recipe, backbone)
    pixels = pixels_of(recipe, manifest, backbone)
    prepared = Prepared(recipe, manifest, with_head(recipe, backbone), phases, None, None, pixels)
    checkpoint = state.load(folder.last)
    done = len(checkpoint.state.history) if checkpoint else 0
    on_event(Event("message", {"text": f"resuming {folder.path} after {done} epochs"}))
    return _train(folder, prepared, checkpoint, seconds={}, on_event=on_event)


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Writes checkpoints and the epochs' lines into a run folder."""

    folder: RunFolder

    def last(self, model: nn.Module, optimiser: dict[str, Tensor], now: TrainState) -> None:
        state.save(self.folder.last, plain_tensors(model), optimiser, now)
        write_text(self.folder.epochs, "".join(f"{saved.line(row)}\n" for row in now.history))

    def best(self, model: nn.Module, now: TrainState) -> None:
        state.save(self.folder.best, plain_tensors(model), {}, now)


class _Timing:
    """Hands events on, and keeps those that say where the time went."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.rows: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "timing":
            self.rows.append(event.facts)
        self.on_event(event)


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
    fresh, timing = _fresh(prepared), _Timing(on_event)
    with _deterministic(recipe.train.deterministic), stop_on_signals() as stop:
        context = accelerator(resolve_device(recipe.train.device), str(recipe.train.precision))
        worker = Worker(prepared, context, timing, lambda: stop.raise_if_asked(lambda: None, folder.path))
        fit = _fit(folder, prepared, worker, stop)
        end = fit_phases(fit, prepared.phases, fresh=fresh, resumed=checkpoint)
    seconds["train"] = time.monotonic() - began
    best = state.load(folder.best)
    if best is None or end.best is None:
        raise CheckpointError(f"{folder.best} is gone: the best weights cannot be evaluated")
    backbone.model.load_state_dict(best.model)
    metrics = _evaluate(prepared, fit)
    saved.write_model(folder.model, backbone, prepared.manifest.classes)
    seconds["evaluate"] = time.monotonic() - began - seconds["train"]
    write_json(
        folder.timing,
        {
            "seconds": seconds,
            "num_train": len(prepared.manifest.split("train")),
            "epochs": len(end.history),
            "training": timing.rows,
        },
    )
    content = saved.report_content(folder, recipe, metrics, end.history, best_epoch=end.best.epoch)
    page.write(folder.report, {**content, "computed": worker.said})
    write_json(folder.metrics, metrics)
    return RunResult(folder.path, recipe.strategy.name, metrics, end.best.epoch, len(prepared.manifest.problems))


def _fit(folder: RunFolder, prepared: Prepared, worker: Worker, stop: Stop) -> Fit:
    recipe = prepared.recipe
    settings = FitSettings(
        optimiser=recipe.optim.name,
        weight_decay=float(recipe.optim.weight_decay),
        schedule=recipe.optim.schedule,
        warmup=recipe.optim.warmup,
        clip=None if recipe.optim.clip == "none" else recipe.optim.clip,
        label_smoothing=recipe.loss.label_smoothing,
        patience=None if recipe.train.patience == "none" else int(recipe.train.patience),
        checkpoint_every=None if recipe.train.checkpoint_every == "none" else recipe.train.checkpoint_every,
        seed=recipe.train.seed,
        micro_batch=None if recipe.train.micro_batch == "auto" else recipe.train.micro_batch,
    )
    return Fit(
        model=prepared.backbone.model,
        groups=prepared.backbone.groups,
        work_of=worker.work_of,
        settings=settings,
        accelerator=worker.context,
        keeper=_Keeper(folder),
        on_event=worker.on_event,
        raise_if_stopped=lambda save: stop.raise_if_asked(save, folder.path),
    )


def _fresh(prepared: Prepared) -> nn.Module:
    """Yield the network as it is when new, for what is re-initialised; the head is new already."""
    if not set(retrained(prepared.phases)) - {"head"}:
        return prepared.backbone.model
    of = replace(prepared.backbone.architecture, pretrained=False)
    return load_backbone(prepared.recipe, of, num_classes=len(prepared.manifest.classes)).model


def _evaluate(prepared: Prepared, fit: Fit) -> dict[str, dict[str, dict[str, float]]]:
    recipe = prepared.recipe
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SPLITS:
        if name == "train" or not prepared.manifest.split(name):
            continue
        samples = prepared.manifest.split(name)
        batches = plain_batches(recipe, prepared.manifest, prepared.backbone, samples, pixels=prepared.pixels)
        logits, targets = collect_logits(fit.model, batches.epoch(), autocast=fit.accelerator.autocast)
        found[name] = {key: to_json(value) for key, value in measure(logits, targets).items()}
    return found


def _lay_folder(prepared: Prepared, out: Path | None) -> RunFolder:
    recipe, manifest = prepared.recipe, prepared.manifest
    words = (Path(recipe.data.path).stem, prepared.backbone.architecture.label, recipe.strategy.name)
    folder = run_folder.create(out, words=words)
    split.write(manifest, folder.split)
    saved.write_problems(folder.problems, manifest)
    write_json(folder.plan, saved.plan_content(prepared.backbone, prepared.phases, manifest))
    if prepared.evidence is not None and prepared.verdict is not None:
        content = {"evidence": to_json(prepared.evidence), "verdict": to_json(prepared.verdict)}
        write_json(folder.evidence, content)
    write_json(folder.environment, environment.describe())
    header = "The resolved recipe of this run; repeat it with: finetune run --recipe recipe.toml"
    write_text(folder.recipe, recipes.dump(recipe, header=header))
    return folder


@contextmanager
def _deterministic(is_asked: bool) -> Iterator[None]:
    """Ask torch for deterministic kernels inside the block, where the recipe does."""
    before = torch.are_deterministic_algorithms_enabled()
    if is_asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
