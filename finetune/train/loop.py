"""Training one phase by gradient: epochs of steps, val after each, the one to deliver kept, any step resumable.

It never knows whether its batches are images or features. Letters: B batch, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.freeze import freezing
from finetune.checkpoint.state import Best, TrainState, optimiser_tensors
from finetune.device import AcceleratedOptimizer
from finetune.errors import TrainingError
from finetune.evaluation.forward import collect_logits
from finetune.optim import optimisers
from finetune.optim.schedules import lr_factor, momentum_at, plateaus
from finetune.randomness import derive, forked
from finetune.train import delivery
from finetune.train.fit import Batches, Fit, Work, batch_size
from finetune.train.memory import out_of_memory
from finetune.train.moving import connections_of, moving, to_unit_variance
from finetune.train.step import Step
from finetune.types import EpochLine, Event, Phase, to_json
from finetune.wording import counted

SELDOM = 0.1  # seconds after which losses are read from a GPU
QUICK = 2.0  # seconds: epochs on cached features are over sooner than a checkpoint is written


def fit_phase(fit: Fit, phase: Phase, state: TrainState, *, optimiser_state: dict[str, Tensor] | None = None) -> None:
    """Train a phase from `state` to its end, or to the end of patience.

    Raises:
        TrainingError: the loss is not finite.
        ResourceError: memory ran out.
        Interrupted: `stop` says so; a checkpoint was written before.
    """
    with freezing(fit.model, phase.plan, fit.groups) as hold:
        work = fit.work_of(phase)
        hold(work.run)
        if fit.settings.initialiser == "lsuv" and not state.epoch and not state.step:
            to_unit_variance(fit, phase, work)
        optimiser, averages, adapters = moving(fit, phase, state, optimiser_state or {})
        run, prepared = fit.accelerator.prepare(work.run, optimiser)
        if fit.accelerator.scaler is not None and state.scaler:
            fit.accelerator.scaler.load_state_dict(state.scaler)
        at_once = fit.settings.micro_batch or -(-work.train.num_images // max(1, len(work.train)))
        try:
            with out_of_memory(at_once):
                # Without a scaler Accelerate's wrapper adds nothing to a step but a fifth of its time.
                stepping = prepared if fit.accelerator.scaler is not None else optimiser
                step = Step(
                    fit.model, stepping, fit.settings, fit.accelerator, averages, adapters, fit.anchors, fit.objective,
                    connections_of(fit),
                )  # fmt: skip
                _train_epochs(fit, run, work, step, phase, state)
                if averages is not None:
                    averages.put()
        finally:
            fit.accelerator.unwrap_model(run, keep_fp32_wrapper=False)
            fit.accelerator.free_memory()


def _train_epochs(fit: Fit, run: nn.Module, work: Work, step: Step, phase: Phase, state: TrainState) -> None:
    saved_at = time.monotonic()
    while state.epoch < (phase.stop_after or phase.epochs) and not _is_out_of_patience(fit, state):
        _train_epoch(fit, run, work.train, step, phase, state)
        lr = phase.lr * _factor(
            fit, phase, state, len(work.train) - 1, len(work.train), drops=_drops(fit, phase, state)
        )
        with step.averages.in_place() if step.averages else nullcontext():
            close_epoch(fit, work, phase, state, lr=lr, save=lambda: _keep(fit, step, phase, state))
        state.enter_epoch(state.epoch + 1)
        if time.monotonic() - saved_at > QUICK:
            _keep(fit, step, phase, state)
            saved_at = time.monotonic()
        fit.stop.raise_if_asked(lambda: _keep(fit, step, phase, state))


def close_epoch(
    fit: Fit, work: Work, phase: Phase, state: TrainState, *, lr: float, save: Callable[[], None] | None = None
) -> None:
    """Measure val, add the epoch's line to the history, keep the weights when the epoch may be delivered.

    `save` writes a checkpoint when the run is stopped meanwhile: behind the last step of the epoch.

    Raises:
        TrainingError: the val loss is not finite.
    """
    value, loss = _on_val(fit, work, save)
    has_one_class = fit.objective.task == "classify"
    epoch = len(state.history) + 1
    if loss is not None and not math.isfinite(loss):
        raise _not_finite(fit, f"the val loss is {loss} after epoch {epoch}, in phase {phase.name}", phase)
    line = EpochLine(
        phase=phase.name,
        epoch=epoch,
        lr=lr,
        train_loss=state.loss_sum / state.num_seen if state.num_seen else None,
        train_top1=state.num_correct / state.num_seen if state.num_seen and has_one_class else None,
        val_loss=loss,
        val_top1=value if has_one_class else None,
        scores={} if has_one_class or value is None else {fit.objective.name: value},
    )
    state.history.append(line)
    if value is None or loss is None:
        fit.on_event(_epoch_event(line, is_best=False, delivered=None))
        return
    delivered = delivery.delivered(state.history, work.val.num_images) if work.val else epoch
    if work.val is not None and delivered == epoch:
        state.best = Best(value, loss, state.phase, epoch)
        fit.keeper.best(fit.model, state)
    is_best = delivery.best(state.history) == epoch
    settings = fit.settings
    is_better = delivery.is_better(state.history, by=settings.patience_by, gain=settings.least_gain)
    state.num_without_better = 0 if is_better else state.num_without_better + 1
    fit.on_event(_epoch_event(line, is_best=is_best, delivered=delivered))


def _epoch_event(line: EpochLine, *, is_best: bool, delivered: int | None) -> Event:
    return Event("epoch", {**to_json(line), "is_best": is_best, "delivered": delivered})


def _on_val(fit: Fit, work: Work, save: Callable[[], None] | None) -> tuple[float, float] | tuple[None, None]:
    """Return the task's score and the loss on val, if there is one."""
    if work.val is None:
        return None, None
    batches = stoppable(fit, work.val.epoch(), save)
    logits, targets = collect_logits(work.run, batches, autocast=fit.accelerator.autocast)
    seen = fit.objective.seen(targets)
    exact = seen.double() if seen.is_floating_point() else seen
    score, loss = fit.objective.score, fit.objective.loss
    return ranks.agreed(lambda: (score(logits, seen), float(loss(logits.double(), exact))))


def stoppable(fit: Fit, batches: Iterator[tuple[Any, Tensor]], save: Callable[[], None] | None = None) -> Iterator[Any]:
    """Yield batches until the run is asked to stop."""
    for batch in batches:
        yield batch
        fit.stop.raise_if_asked(save)


def _train_epoch(fit: Fit, run: nn.Module, batches: Batches, step: Step, phase: Phase, state: TrainState) -> None:
    saved_at = began = read_at = time.monotonic()
    seen_before = state.num_seen
    every = fit.settings.checkpoint_every
    run.train()
    waited, unread, drops = _Waited(), _Unread(), _drops(fit, phase, state)
    for inputs, targets in waited(batches.epoch(state.epoch, phase=state.phase, start=state.step)):
        _set_rates(fit, step.optimiser, phase, state, len(batches), drops=drops)
        place = derive(fit.settings.seed, "step", state.phase, state.epoch, state.step, *ranks.place())
        num_images = batch_size(batches, state.step)
        seeded = partial(forked, place, devices=(fit.accelerator.device,))
        num_steps = state.epoch * len(batches) + state.step
        loss, num_correct = step.take(run, inputs, targets, num_images=num_images, num_steps=num_steps, seeded=seeded)
        unread.add(loss, num_correct, num_images)
        state.step += 1
        is_on_gpu = fit.accelerator.device.type != "cpu"
        if is_on_gpu and time.monotonic() - read_at < SELDOM and state.step < len(batches):
            continue  # to read a number there stops a GPU until it has computed all before
        unread.read(fit, phase, state)
        read_at = time.monotonic()
        speed = (state.num_seen - seen_before) / max(read_at - began, 1e-9)
        fit.on_event(
            Event(
                "step",
                {
                    "phase": phase.name,
                    "epoch": state.epoch + 1,
                    "epochs": phase.epochs,
                    "step": state.step,
                    "steps": len(batches),
                    "loss": state.loss_sum / state.num_seen,
                    "images_per_second": speed,
                },
            )
        )
        if every is not None and time.monotonic() - saved_at > 60 * every:
            _keep(fit, step, phase, state)
            saved_at = time.monotonic()
        fit.stop.raise_if_asked(lambda: _keep(fit, step, phase, state))
    seconds = {"seconds": time.monotonic() - began, "waited": waited.seconds}
    fit.on_event(Event("timing", {"phase": phase.name, "epoch": state.epoch + 1, **seconds}))


class _Unread:
    """Losses and hits of the steps since a number was last read from the device."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, int]] = []

    def add(self, loss: Tensor, num_correct: Tensor, num_images: int) -> None:
        self.steps.append((loss, num_correct, num_images))

    def read(self, fit: Fit, phase: Phase, state: TrainState) -> None:
        """Add them to the sums of the epoch, in the order of the steps; `state.step` was the last.

        Raises:
            TrainingError: the loss of one of them is not finite.
        """
        losses, hits, counts = zip(*self.steps, strict=True)
        first = state.step - len(self.steps) + 1
        read = zip(torch.stack(losses).tolist(), torch.stack(hits).tolist(), counts, strict=True)
        for step, (loss, num_correct, num_images) in enumerate(read, start=first):
            if not math.isfinite(loss):
                where = f"in phase {phase.name}, epoch {state.epoch + 1}, step {step}"
                raise _not_finite(fit, f"the loss is {loss} {where}", phase)
            state.loss_sum += loss * num_images
            state.num_correct += num_correct
            state.num_seen += num_images
        self.steps.clear()


class _Waited:
    """How long the loop waited for its batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, batches: Iterator[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - asked
            if batch is None:
                return
            yield batch


def _set_rates(fit: Fit, optimiser: Any, phase: Phase, state: TrainState, steps: int, *, drops: int) -> None:
    """Set learning rate and momentum for the next step."""
    factor = _factor(fit, phase, state, state.step, steps, drops=drops)
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
    place, total = state.epoch * steps + state.step, phase.epochs * steps
    momentum = momentum_at(place, total=total, per_epoch=steps, optim=fit.settings.optim)
    if momentum is not None:
        optimisers.set_momentum(optimiser, momentum)


def _factor(fit: Fit, phase: Phase, state: TrainState, step: int, steps: int, *, drops: int) -> float:
    """Return the share of the peak learning rate at a step of the epoch that `state` is in."""
    place, total = state.epoch * steps + step, phase.epochs * steps
    return lr_factor(place, total=total, per_epoch=steps, optim=fit.settings.optim, drops=drops)


def _drops(fit: Fit, phase: Phase, state: TrainState) -> int:
    """Return how often the phase has met a plateau before the epoch that `state` is in."""
    lines = [line for line in fit.led_by or state.history if line.phase == phase.name][: state.epoch]
    losses = [line.val_loss for line in lines if line.val_loss is not None]
    return plateaus(losses, patience=fit.settings.optim.drop_patience)


def _keep(fit: Fit, step: Step, phase: Phase, state: TrainState) -> None:
    """Write a checkpoint, unless the weights are no longer finite: then the last good one stays."""
    if not ranks.is_first():
        return
    trained = {name: weight for name, weight in fit.model.named_parameters() if weight.requires_grad}
    claims = torch.stack([torch.isfinite(weight).all() for weight in trained.values()]).tolist()
    for name, is_finite in zip(trained, claims, strict=True):
        if not is_finite:
            raise _not_finite(fit, f"{name} is no longer finite in phase {phase.name}, epoch {state.epoch + 1}", phase)
    if fit.accelerator.scaler is not None:
        state.scaler = fit.accelerator.scaler.state_dict()
    own = step.optimiser.optimizer if isinstance(step.optimiser, AcceleratedOptimizer) else step.optimiser
    tensors = optimiser_tensors(own)
    for part in (step.averages, step.adapters):
        tensors |= part.saved() if part is not None else {}
    with step.averages.set_aside() if step.averages else nullcontext():
        fit.keeper.last(fit.model, tensors, state)


def _not_finite(fit: Fit, text: str, phase: Phase) -> TrainingError:
    exact = "" if fit.accelerator.mixed_precision == "no" else ", or train in float32 (--set train.precision=float32)"
    return TrainingError(text, hint=f"Lower the learning rate (--lr {phase.lr / 10:g}){exact}.")


def _is_out_of_patience(fit: Fit, state: TrainState) -> bool:
    patience = fit.settings.patience
    if patience is None or state.num_without_better < patience:
        return False
    text = f"no better val in {counted(patience, 'epoch')}: phase ends after epoch {state.epoch}"
    fit.on_event(Event.message(text))
    return True
