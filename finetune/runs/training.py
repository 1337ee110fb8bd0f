"""Training a prepared run in its folder: to the end of its phases, or only up to an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.folder import plain_tensors
from finetune.checkpoint import best, state
from finetune.checkpoint.cache_choices import BeganCached
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.saved import line
from finetune.checkpoint.state import Checkpoint, TrainState
from finetune.data.split import units_of
from finetune.device import Compute
from finetune.errors import DataError, ResourceError, TrainingError
from finetune.optim.class_weights import class_weights
from finetune.prepare.batches import Feeder
from finetune.prepare.inputs import reloaded
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import train_counts
from finetune.runs.signals import Stop
from finetune.strategy.strategies import retrained
from finetune.train.fit import Fit, Keeper
from finetune.train.guard import IN_A_RUN, guarded
from finetune.train.memory import is_out_of_memory
from finetune.train.objectives import objective_of
from finetune.train.phases import fit_phases
from finetune.train.settings import FitSettings
from finetune.types import EpochLine, Event, OnEvent, StopSign
from finetune.whole import write_text


@dataclass(frozen=True, slots=True)
class Trained:
    """The state of training, what fed its phases, and where the time went."""

    state: TrainState
    feeder: Feeder
    timing: Sequence[dict[str, Any]]


class _PausedError(Exception):
    """Training reached the epoch up to which it was asked to go; a checkpoint was written."""


class _Watch:
    """Passes events on, keeps those that say where the time went, and counts epochs."""

    def __init__(self, on_event: OnEvent, *, done: int) -> None:
        self.on_event = on_event
        self.rows: list[dict[str, Any]] = []
        self.num_epochs = done

    def __call__(self, event: Event) -> None:
        if event.kind == "timing":
            self.rows.append(event.facts)
        self.num_epochs += event.kind == "epoch"
        self.on_event(event)


@dataclass(frozen=True, slots=True)
class _Pause:
    """Asks training to stop at an epoch, in addition to signals."""

    stop: Stop
    watch: _Watch
    until: int

    def raise_if_asked(self, save: Callable[[], None] | None = None) -> None:
        self.stop.raise_if_asked(save)
        if self.watch.num_epochs >= self.until:
            if save:
                save()
            raise _PausedError


@dataclass(slots=True)
class _Keeper:
    """Writes checkpoints and the epochs' lines into a run folder.

    What would be delivered is kept in memory until a place in training is written that speaks of it:
    quick epochs are over sooner than a file is written. What is frozen is not copied. Of several processes of a run
    the first writes.
    """

    folder: RunFolder
    pending: tuple[dict[str, Tensor], TrainState] | None = None

    def last(self, model: nn.Module, optimiser: dict[str, Tensor], now: TrainState) -> None:
        if not ranks.is_first():
            return
        if self.pending:
            tensors, then = self.pending
            best.keep(self.folder, plain_tensors(tensors), then)
            self.pending = None
        state.save(self.folder.last, plain_tensors(model.state_dict()), optimiser, now)
        best.drop_unspoken(self.folder)
        _write_epochs(self.folder, now.history)

    def best(self, model: nn.Module, now: TrainState) -> None:
        if not ranks.is_first():
            return
        frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        tensors = {name: tensor if name in frozen else tensor.clone() for name, tensor in model.state_dict().items()}
        self.pending = tensors, replace(now, history=list(now.history))


def train(
    folder: RunFolder,
    prepared: Prepared,
    checkpoint: Checkpoint | None,
    *,
    stop: Stop,
    on_event: OnEvent,
    until: int | None = None,
    led_by: Sequence[EpochLine] | None = None,
) -> Trained:
    """Train from a checkpoint (or the first step) to the end of the phases, or until `until` epochs are done.

    What a stopped process wrote about epochs after the checkpoint is cut. `led_by` are the epochs of a fit whose
    learning rates this one follows.

    Raises:
        Interrupted: a signal came; a checkpoint was written.
    """
    history = checkpoint.state.history if checkpoint else []
    watch = _Watch(on_event, done=len(history))
    ranks.agreed(lambda: _write_epochs(folder, history))
    began = ranks.agreed(lambda: BeganCached(folder))

    feeder = Feeder(prepared, on_event=watch, stop=stop, began=began)
    fit = fit_of(prepared, feeder, _Keeper(folder), stop if until is None else _Pause(stop, watch, until))
    fit.led_by = led_by
    fresh = fresh_of(prepared)
    with stop.training():
        try:
            end = fit_phases(fit, prepared.phases, fresh=fresh, resumed=checkpoint)
        except _PausedError:
            paused = state.load(folder.last)
            assert paused is not None  # written just before the pause
            end = paused.state
    return Trained(end, feeder, watch.rows)


@contextmanager
def computing(compute: Compute) -> Iterator[None]:
    """Compute inside the block as settled: with its threads, and deterministic kernels if asked for.

    Raises:
        ResourceError: memory ran out, a process that decodes images died, or CUDA was used too early.
    """
    with compute.in_force(), guarded(IN_A_RUN):
        yield


@contextmanager
def telling_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """Add how to resume the run to the hint of an error inside the block."""
    try:
        yield
    except (DataError, ResourceError, TrainingError) as error:
        text = f"What was done is kept: {folder.resuming}"
        is_settings = isinstance(error, TrainingError) or is_out_of_memory(error.__cause__)
        more = " --allow recipe, with the flag that is to change" if is_settings else ""
        error.hint = f"{error.hint} {text}{more}".lstrip()
        raise


def _write_epochs(folder: RunFolder, history: Sequence[EpochLine]) -> None:
    write_text(folder.epochs, "".join(f"{line(row)}\n" for row in history))


def fit_of(prepared: Prepared, feeder: Feeder, keeper: Keeper, stop: StopSign) -> Fit:
    """Return the model of a run with everything the loop needs around it."""
    return Fit(
        model=prepared.backbone.model,
        groups=prepared.backbone.groups,
        work_of=feeder.work_of,
        settings=FitSettings.of(prepared.recipe, class_weights=_class_weights(prepared)),
        accelerator=prepared.compute.accelerator(),
        keeper=keeper,
        on_event=feeder.on_event,
        stop=stop,
        units=units_of(prepared.manifest.split("train")),
        objective=objective_of(prepared.manifest.task, prepared.scale),
    )


def _class_weights(prepared: Prepared) -> Tensor | None:
    """Return how much an image of each class counts (K,), or how often it is drawn; None if all are the same."""
    if prepared.recipe.train.balance not in ("weights", "sampling"):
        return None
    return torch.from_numpy(class_weights(train_counts(prepared))).float().to(prepared.compute.device)


def fresh_of(prepared: Prepared) -> nn.Module:
    """Return the network when new, for what is re-initialised; the head is already new."""
    if not set(retrained(prepared.phases)) - {"head"}:
        return prepared.backbone.model
    of = replace(prepared.backbone.architecture, pretrained=False)
    return reloaded(prepared, of=of).model
