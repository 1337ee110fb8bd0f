"""The work of a run, epoch by epoch, in forward passes of one image: counted on a network without weights."""

from __future__ import annotations

from finetune.backbone.load import Backbone
from finetune.prepare.batch_size import skeleton_or_none
from finetune.prepare.batches import drawn_views
from finetune.prepare.costs import cut_of, divided_or_none, operations_of
from finetune.prepare.prepared import Prepared
from finetune.settings import Recipe
from finetune.strategy.race import CandidateWork
from finetune.types import Phase


def work_of(prepared: Prepared) -> CandidateWork | None:
    """Return the work of a run; None for a network whose operations cannot be counted.

    The trunk's outputs are counted where they are computed: with the first epoch of its phase when it is
    cached, else with every epoch. A cache that is filled already, or by another phase, makes it less.
    """
    recipe, manifest = prepared.recipe, prepared.manifest
    skeleton = skeleton_or_none(recipe, num_classes=len(manifest.classes))
    if skeleton is None:
        return None
    num_train, num_val = len(manifest.split("train")), len(manifest.split("val"))
    try:
        epochs = [value for phase in prepared.phases for value in _phase(recipe, skeleton, phase, num_train, num_val)]
    except (NotImplementedError, RuntimeError):  # a network that computes with the values of its tensors
        return None
    return CandidateWork(tuple(epochs), num_train + num_val)


def _phase(recipe: Recipe, skeleton: Backbone, phase: Phase, num_train: int, num_val: int) -> list[float]:
    divided = divided_or_none(skeleton, phase.plan)
    counts = operations_of(skeleton, phase.plan, divided)
    is_solved = phase.solver == "lbfgs"
    step = 1.0 if is_solved else counts.step / counts.forward
    cut = cut_of(recipe, phase, num_train, num_val, divided=divided, counts=counts)
    trunk = cut.trunk_share if cut and cut.views else 0.0
    views = cut.views if cut else 0
    shown = num_train * (drawn_views(recipe, phase) if is_solved else 1)
    epoch = shown * max(step - trunk, 0.0) + num_val * (1 - trunk)
    filling = trunk * (num_train * views + num_val)
    count = 1 if is_solved else phase.epochs
    return [filling + epoch, *[epoch] * (count - 1)]
