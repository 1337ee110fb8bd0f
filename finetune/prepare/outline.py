"""What a run is about to do, in one line before its first step: the steps, and how long they take at most.

Timing the network for that takes a second or two (see `costs`), so it is done only if the work takes minutes.
"""

from __future__ import annotations

from math import prod

from finetune.backbone import catalogue
from finetune.errors import FinetuneError
from finetune.prepare.batches import drawn_views
from finetune.prepare.prepared import Prepared
from finetune.prepare.time_limit import predicted
from finetune.strategy.budget import told
from finetune.types import Phase
from finetune.wording import counted

WORTH = {"cpu": 1_500.0}  # billions of multiply-adds that take a minute or so
WORTH_ELSEWHERE = 300_000.0  # on a GPU


def outline(prepared: Prepared, *, has_limit: bool = False) -> str:
    """Return the steps of a prepared run in words, with the time they take at most where that is long.

    A run that `has_limit` was fitted into a time, and has told how much of it it takes (`time_limit`).
    """
    steps = [_step(phase) for phase in prepared.phases]
    measured = " and ".join(name for name in ("val", "test") if prepared.manifest.split(name))
    steps += [f"measure on {measured}"] if measured else []
    steps += ["refit on train and val"] if prepared.recipe.train.refit else []
    seconds = None if has_limit else _most_seconds(prepared)
    about = "" if seconds is None else f", at most about {told(seconds)} of computing"
    return f"{counted(len(steps) + 1, 'step')}{about}: {', '.join(steps)}, report"


def _step(phase: Phase) -> str:
    if phase.solver == "lbfgs":
        return f"solve {phase.name}"
    return f"train {phase.name} ({counted(phase.epochs, 'epoch')})"


def _most_seconds(prepared: Prepared) -> float | None:
    """Return the seconds of training, if all epochs are trained and torch runs what is frozen; None if that is short.

    None too for a network that cannot be timed.
    """
    if _least_work(prepared) < WORTH.get(prepared.compute.device.type, WORTH_ELSEWHERE):
        return None
    num_images = len(prepared.manifest.split("train")) + len(prepared.manifest.split("val"))
    try:
        option = predicted(prepared, num_images=num_images)
    except FinetuneError:
        return None
    return option.seconds(option.epochs) * (2 if prepared.recipe.train.refit else 1)


def _least_work(prepared: Prepared) -> float:
    """Return the billions of multiply-adds of a forward pass over all that the trunk sees; 0 for an unknown network."""
    entry = catalogue.find(prepared.backbone.architecture.label.partition(".")[0])
    if entry is None or entry.gmacs is None:
        return 0.0
    size = (entry.weights or entry.network).image_size
    scale = prod(prepared.backbone.preprocessing.image_size) / prod(size)
    num_train = len(prepared.manifest.split("train"))
    views = sum(_passes(prepared, phase) for phase in prepared.phases)
    return float(entry.gmacs * scale * num_train * views)


def _passes(prepared: Prepared, phase: Phase) -> int:
    return drawn_views(prepared.recipe, phase) if _is_head_alone(phase) else phase.epochs


def _is_head_alone(phase: Phase) -> bool:
    return phase.solver == "lbfgs" or set(phase.plan.trained) == {"head"}
