"""Labels that a linear model fitted to the other images contradicts, by the task.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.findings import Case, seen
from finetune.data.targets import strata
from finetune.evaluation.intervals import share
from finetune.features.families import FAMILIES
from finetune.features.label_errors import FEWEST, held_out_probabilities, is_judged, suspects
from finetune.features.probe import held_out_logits, unit_folds
from finetune.features.ridge_values import ValueRidge, best_left_out
from finetune.features.scaling import blocks
from finetune.strategy.probing import explained_measure, interval_of, precision_measure
from finetune.tasks import Task
from finetune.types import Interval, Manifest

FAR = 3.5  # deviations that a number may be off, a deviation being 1.4826 times the median distance from the median


@dataclass(frozen=True, slots=True)
class Doubts:
    """How well the model tells images that it was not fitted to, whose labels (N,) it judges, and its doubts."""

    score: Interval
    is_judged: Tensor
    cases: tuple[Case, ...]


def doubts_of(manifest: Manifest, features: Tensor, targets: Tensor, units: Sequence[int], *, seed: int) -> Doubts:
    """Return the labels of a manifest that are doubted by features (N, D), the most doubtful first.

    Raises:
        TrainingError: a feature is not finite.
    """
    return DOUBTS[manifest.task](manifest, features, targets, units, seed)


def _of_one(manifest: Manifest, features: Tensor, targets: Tensor, units: Sequence[int], seed: int) -> Doubts:
    names = manifest.classes
    probabilities = held_out_probabilities(features, targets, units, num_classes=len(names), seed=seed)
    cases = tuple(
        Case(
            (seen(manifest, doubt.place),),
            f"rather {names[doubt.suggested]}, {doubt.suggested_confidence:.2f} to {doubt.confidence:.2f}",
            {
                "suggested": names[doubt.suggested],
                "suggested_confidence": doubt.suggested_confidence,
                "confidence": doubt.confidence,
            },
        )
        for doubt in suspects(probabilities, targets, units)
    )
    hits = (probabilities.argmax(dim=1) == targets).numpy()
    return Doubts(share(hits, units), is_judged(targets, units), cases)


def _of_several(manifest: Manifest, features: Tensor, targets: Tensor, units: Sequence[int], seed: int) -> Doubts:
    """Judge each class by itself as a binary one: an image has it or not."""
    parts = unit_folds(torch.from_numpy(strata(targets.numpy())), units, seed=seed)
    count, family = len(manifest.classes), FAMILIES["multilabel"]
    logits = held_out_logits(features, targets, num_classes=count, parts=parts, family=family)
    cases, judged = [], torch.zeros(len(targets), dtype=torch.bool)
    for index, name in enumerate(manifest.classes):
        has = targets[:, index].long()
        shares = logits[:, index].sigmoid()
        judged |= is_judged(has, units)
        for doubt in suspects(torch.stack([1 - shares, shares], dim=1), has, units):
            word = "with" if doubt.suggested else "without"
            note = f"rather {word} {name}, {doubt.suggested_confidence:.2f} to {doubt.confidence:.2f}"
            facts = {
                "suggested": f"{word} {name}",
                "suggested_confidence": doubt.suggested_confidence,
                "confidence": doubt.confidence,
            }
            cases.append((doubt.confidence, Case((seen(manifest, doubt.place),), note, facts)))
    score = interval_of(precision_measure(logits.double().numpy(), targets.numpy()), tuple(targets.shape), units)
    return Doubts(score, judged, tuple(case for _, case in sorted(cases, key=lambda pair: pair[0])))


def _of_number(manifest: Manifest, features: Tensor, targets: Tensor, units: Sequence[int], seed: int) -> Doubts:
    """Judge each number by how far it is from what a ridge regression on the other units says."""
    said = best_left_out(ValueRidge.of(features, targets), blocks(units))[0][:, 0].numpy()  # (N,)
    numbers = targets[:, 0].double().numpy()
    off = numbers - said - np.median(numbers - said)
    usual = max(1.4826 * float(np.median(np.abs(off))), 1e-9 * float(np.abs(numbers).max()), 1e-30)
    is_enough = len(set(units)) >= FEWEST
    places = np.flatnonzero(np.abs(off) > FAR * usual) if is_enough else np.zeros(0, dtype=np.int64)
    cases = tuple(
        Case(
            (seen(manifest, place),),
            f"rather {said[place]:.4g}, {abs(off[place]) / usual:.1f} deviations off",
            {"suggested": float(said[place]), "deviations": float(abs(off[place]) / usual)},
        )
        for place in sorted(places.tolist(), key=lambda place: -abs(off[place]))
    )

    judged = torch.full((len(numbers),), is_enough)
    measure = explained_measure(said[:, None], targets.numpy())
    return Doubts(interval_of(measure, tuple(targets.shape), units), judged, cases)


DOUBTS: dict[Task, Callable[[Manifest, Tensor, Tensor, Sequence[int], int], Doubts]] = {
    "classify": _of_one,
    "multilabel": _of_several,
    "regress": _of_number,
}
