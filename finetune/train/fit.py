"""What training works on: a model, its batches, and everything that the loop needs around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from finetune.checkpoint.state import TrainState
from finetune.device import Accelerator
from finetune.train.objectives import CLASSES, Objective
from finetune.train.settings import FitSettings
from finetune.types import EpochLine, LayerGroup, OnEvent, Phase, StopSign


class Batches(Protocol):
    """Batches of inputs and targets on the device, an epoch at a time."""

    num_images: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Any, Tensor]]: ...


class Keeper(Protocol):
    """Where checkpoints go: the place in training, and the epoch that would be delivered."""

    def last(self, model: nn.Module, optimiser: dict[str, Tensor], state: TrainState) -> None: ...

    def best(self, model: nn.Module, state: TrainState) -> None: ...


def batch_size(batches: Batches, step: int) -> int:
    """Return how many images the batch of a step has, in all processes of a run together: see `data.loaders.Order`."""
    size, more = divmod(batches.num_images, len(batches))
    return size + (step < more)


@dataclass(frozen=True, slots=True)
class Work:
    """What a phase runs: the model on images, or its tail on what the trunk yielded.

    `run` shares its parameters with the model. `train` is drawn anew each epoch; for a phase that is
    solved it holds the images in order, and each epoch is one of `views` views, the first as evaluation sees them.
    Without `val` nothing is measured, and no epoch is better than another.
    """

    run: nn.Module
    train: Batches
    val: Batches | None
    views: int = 1


@dataclass(slots=True)
class Fit:
    """A model in training, and everything the loop needs around it.

    `work_of` yields what a phase runs; it is called with the model held to the phase's freeze plan.
    """

    model: nn.Module
    groups: Sequence[LayerGroup]
    work_of: Callable[[Phase], Work]
    settings: FitSettings
    accelerator: Accelerator
    keeper: Keeper
    on_event: OnEvent
    stop: StopSign
    units: Sequence[int] | None = None  # of each image of train: copies and groups share a number
    objective: Objective = CLASSES
    anchors: dict[str, Tensor] = field(default_factory=dict)  # pretrained weights that others are held near
    led_by: Sequence[EpochLine] | None = None  # a refit drops the learning rate where the first fit did


def renewed(phase: Phase) -> list[str]:
    """Return the layer groups that a phase re-initialises."""
    return [plan.group for plan in phase.plan.groups if plan.is_reinitialised]


def renewed_parameters(fit: Fit, phase: Phase) -> list[str]:
    """Return the parameters that a phase re-initialises."""
    names = renewed(phase)
    return [name for group in fit.groups if group.name in names for name in group.parameters]
