"""The run in prose: prepare, train, evaluate the best, leave a run folder behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune import recipe as recipes
from finetune.backbone.folder import plain_tensors
from finetune.checkpoint import run_folder, state
from finetune.checkpoint.claim import LINGER, claimed, clear_leftovers, new_folder
from finetune.checkpoint.run_folder import RunFolder, write_json, write_text
from finetune.checkpoint.state import Checkpoint, TrainState
from finetune.data.loaders import lost_workers
from finetune.device import accelerator, resolve_device
from finetune.errors import CheckpointError, DataError, ResourceError, TrainingError
from finetune.evaluation.forward import collect_logits
from finetune.evaluation.metrics import measure
from finetune.report import page
from finetune.settings import Recipe
from finetune.strategy.strategies import retrained
from finetune.train.loop import Fit, FitSettings
from finetune.train.phases import fit_phases
from finetune.types import SPLITS, Event, OnEvent, ignore, to_json
from finetune.workflow import changes, saved
from finetune.workflow.batch_size import with_micro_batch
from finetune.workflow.batches import Worker
from finetune.workflow.laying import lay_folder, reopen, with_whole_paths
from finetune.workflow.passes import plain_batches
from finetune.workflow.prepare import (
    Prepared,
    load_backbone,
    prepare,
    recipe_of,
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
    with stop_on_signals() as stop:
        if out is not None:
            with new_folder(Path(out)) as folder:
                write_text(folder.asked, recipes.dump(with_whole_paths(chosen)))
                return _begin(folder, *_prepared(chosen, on_event), stop=stop, on_event=on_event)
        prepared, seconds = _prepared(chosen, on_event)
        words = (Path(chosen.data.path).stem, prepared.backbone.architecture.label, prepared.recipe.strategy.name)
        with new_folder(None, words=words) as folder:
            return _begin(folder, prepared, seconds, stop=stop, on_event=on_event)


def resume(
    path: str | Path,
    *,
    allow: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> RunResult:
    """Go on with an interrupted run from its last checkpoint, as if it had never stopped.

    `allow` names the kinds of change ("data", "version", "recipe") that may have come between;
    `settings` and `overrides` change the recipe, as in `run`.

    Raises:
        CheckpointError: no run folder, damaged, already finished, or something changed that may not.
        ResourceError: another process is at it.
    """
    kinds = changes.check_kinds(allow)
    folder = run_folder.open_unfinished(path)
    _check_unfinished(folder)
    with stop_on_signals() as stop, claimed(folder, seconds=LINGER, on_event=on_event):
        _check_unfinished(folder)
        clear_leftovers(folder)
        if not folder.recipe.is_file():
            on_event(Event("message", {"text": f"{folder.path} was stopped before its first step: it begins anew"}))
            chosen = recipe_of(folder.asked, settings=settings, overrides=overrides)
            return _begin(folder, *_prepared(chosen, on_event), stop=stop, on_event=on_event)
        stop.folder = folder.path
        folder.asked.unlink(missing_ok=True)
        recipe = recipe_of(folder.recipe, settings=settings, overrides=overrides)
        prepared, allowed = reopen(folder, recipe, allow=kinds, on_event=on_event)
        checkpoint = state.load(folder.last, on_event=on_event)
        history = checkpoint.state.history if checkpoint else []
        _write_epochs(folder, history)
        on_event(Event("message", {"text": f"resuming {folder.path} after {len(history)} epochs"}))
        return _train(folder, prepared, checkpoint, allowed=allowed, seconds={}, stop=stop, on_event=on_event)


def _check_unfinished(folder: RunFolder) -> None:
    if folder.is_finished:
        raise CheckpointError(f"{folder.path} is finished: there is nothing to resume", hint="See its report.html.")


def _prepared(recipe: Recipe, on_event: OnEvent) -> tuple[Prepared, dict[str, float]]:
    began = time.monotonic()
    prepared = with_micro_batch(prepare(recipe, on_event=on_event), on_event=on_event)
    return prepared, {"prepare": time.monotonic() - began}


def _begin(
    folder: RunFolder, prepared: Prepared, seconds: dict[str, float], *, stop: Stop, on_event: OnEvent
) -> RunResult:
    lay_folder(folder, prepared)
    stop.folder = folder.path
    on_event(Event("message", {"text": f"run folder: {folder.path}"}))
    return _train(folder, prepared, None, allowed=[], seconds=seconds, stop=stop, on_event=on_event)


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Writes checkpoints and the epochs' lines into a run folder."""

    folder: RunFolder

    def last(self, model: nn.Module, optimiser: dict[str, Tensor], now: TrainState) -> None:
        state.save(self.folder.last, plain_tensors(model), optimiser, now)
        _write_epochs(self.folder, now.history)

    def best(self, model: nn.Module, now: TrainState) -> None:
        state.save(self.folder.best, plain_tensors(model), {}, now, keeps_before=False)


def _write_epochs(folder: RunFolder, history: Sequence[dict[str, Any]]) -> None:
    write_text(folder.epochs, "".join(f"{saved.line(row)}\n" for row in history))


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
    allowed: Sequence[str],
    seconds: dict[str, float],
    stop: Stop,
    on_event: OnEvent,
) -> RunResult:
    began = time.monotonic()
    recipe, backbone = prepared.recipe, prepared.backbone
    fresh, timing = _fresh(prepared), _Timing(on_event)
    with _deterministic(recipe.train.deterministic), _how_to_go_on(folder), lost_workers():
        context = accelerator(resolve_device(recipe.train.device), str(recipe.train.precision))
        resumed = checkpoint.state if checkpoint else None
        worker = Worker(prepared, context, timing, lambda: stop.raise_if_asked(lambda: None), resumed=resumed)
        fit = _fit(folder, prepared, worker, stop)
        with stop.training(), lost_workers():
            end = fit_phases(fit, prepared.phases, fresh=fresh, resumed=checkpoint)
        seconds["train"] = time.monotonic() - began
        backbone.model.load_state_dict(_best(folder, end).model)
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
        best_epoch = end.best.epoch if end.best else 0
        content = saved.report_content(folder, recipe, metrics, end.history, best_epoch=best_epoch)
        page.write(folder.report, {**content, "computed": [*allowed, *worker.said]})
        write_json(folder.metrics, metrics)
    return RunResult(folder.path, recipe.strategy.name, metrics, best_epoch, len(prepared.manifest.problems))


def _best(folder: RunFolder, end: TrainState) -> Checkpoint:
    """Yield the checkpoint of the epoch that was best."""
    best = state.load(folder.best)
    if best is None or end.best is None or best.state.best != end.best:
        raise CheckpointError(
            f"{folder.best} no longer holds the best epoch: its weights cannot be evaluated",
            hint=f"Start again from the recipe: finetune run --recipe {folder.recipe}",
        )
    return best


@contextmanager
def _how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """Add to the hint of what fails inside the block how the run is gone on with."""
    try:
        yield
    except (DataError, ResourceError, TrainingError) as error:
        text = f"What was done is kept: finetune run --resume {folder.path}"
        more = " --allow recipe, with the flag that is to change" if isinstance(error, TrainingError) else ""
        error.hint = f"{error.hint} {text}{more}".lstrip()
        raise


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
        raise_if_stopped=stop.raise_if_asked,
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
