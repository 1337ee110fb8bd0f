"""How much of a device's memory a plan takes, by phase and precision, and how many images fit into it.

For the GPU that the run is meant for, which need not be here: nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from finetune.backbone.load import Backbone
from finetune.features.graphs import IndivisibleError
from finetune.features.sources import ON_GPU
from finetune.prepare.batch_size import LEAST, MARGIN
from finetune.prepare.prepared import Prepared
from finetune.train.ledger import Held, largest_batch, pass_held, step_held
from finetune.types import Phase

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a phase holds on a device in a precision: in a step of `batch` images, and in a pass of the frozen layers.

    A head that is solved takes no steps, and where nothing is frozen there is no pass. `largest` is how many images
    at once leave a tenth of `within` bytes free; 0 is none.
    """

    phase: str
    precision: str
    batch: int
    step: Held | None
    passing: Held | None
    pass_batch: int
    within: int | None = None
    largest: int | None = None

    @property
    def total(self) -> int:
        """The bytes at the fullest moment."""
        return max(held.total for held in (self.step, self.passing) if held is not None)


def device_memory(
    prepared: Prepared, skeleton: Backbone, *, batch: int, within: int | None = None
) -> Iterator[DeviceMemory]:
    """Yield what each phase of a run holds, in the precision of its recipe, or in both where that is auto."""
    named = prepared.recipe.train.precision
    for phase in prepared.phases:
        for precision in PRECISIONS if named == "auto" else (named,):
            yield _of_phase(prepared, skeleton, phase, precision, batch, within)


def _of_phase(
    prepared: Prepared, skeleton: Backbone, phase: Phase, precision: str, batch: int, within: int | None
) -> DeviceMemory:
    recipe = prepared.recipe
    try:
        passing = pass_held(skeleton, phase, batch=ON_GPU, precision=precision)
    except IndivisibleError:
        passing = None
    step = partial(step_held, skeleton, phase, recipe, precision=precision, is_cut=passing is not None)
    if phase.solver == "lbfgs":
        passing = passing or pass_held(skeleton, phase, batch=batch, precision=precision, is_whole=True)
        return DeviceMemory(phase.name, precision, batch, None, passing, ON_GPU, within)
    held = step(batch=batch)
    largest = None
    if within is not None:
        room = round((1 - MARGIN) * within)
        fits = passing is None or passing.total <= room
        largest = largest_batch(lambda size: step(batch=max(size, LEAST)).total, room) if fits else 0
    return DeviceMemory(phase.name, precision, batch, held, passing, ON_GPU, within, largest)
