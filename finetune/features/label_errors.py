"""Labels that a classifier fitted to other images contradicts: confident learning.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.features.probe import held_out_logits, unit_folds

DOUBT = 0.25  # share of its class's threshold: a suspicious label has at most this probability
FEWEST = 10  # units a class needs to be judged: with fewer, a fold leaves too little to learn from


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label is doubted: the class suggested instead, and the probability of each."""

    place: int
    suggested: int
    confidence: float
    suggested_confidence: float


def held_out_probabilities(
    features: Tensor, targets: Tensor, units: Sequence[int], *, num_classes: int, seed: int
) -> Tensor:
    """Return the probabilities (N, K) that logistic regressions give to images they were not fitted to.

    Images of one unit (copies, a group) are in one fold, so that no copy vouches for another.

    Raises:
        TrainingError: a feature is not finite.
    """
    parts = unit_folds(targets, units, seed=seed)
    return held_out_logits(features, targets, num_classes=num_classes, parts=parts).softmax(dim=1)


def suspects(probabilities: Tensor, targets: Tensor, units: Sequence[int]) -> list[Suspect]:
    """Return the images whose label is doubted, the least confident first.

    Class k's threshold is the mean probability of k over the images labelled k. An image counts as
    another class than its label when the likeliest of the classes whose threshold it reaches is that
    other one (an off-diagonal place of the confident joint), and when its label has less than a quarter of
    its own threshold: without that, a weak classifier doubts everything hard. Classes of fewer than 10
    units are not judged.
    Source: Northcutt, Jiang & Chuang 2021, Confident learning, JAIR 70, arXiv:1911.00068.
    """
    own = probabilities.gather(1, targets[:, None])[:, 0]  # (N,)
    num_classes = probabilities.shape[1]
    sizes = torch.bincount(targets, minlength=num_classes).clamp_min(1)
    thresholds = torch.zeros(num_classes).scatter_add_(0, targets, own) / sizes  # (K,)
    thresholds[torch.bincount(targets, minlength=num_classes) == 0] = torch.inf
    reached = probabilities.masked_fill(probabilities < thresholds, -1)
    highest, suggested = reached.max(dim=1)  # (N,)
    is_doubted = (
        (highest >= 0) & (suggested != targets) & (own < DOUBT * thresholds[targets]) & is_judged(targets, units)
    )
    places = sorted(torch.nonzero(is_doubted)[:, 0].tolist(), key=lambda place: float(own[place]))
    return [Suspect(place, int(suggested[place]), float(own[place]), float(highest[place])) for place in places]


def is_judged(targets: Tensor, units: Sequence[int]) -> Tensor:
    """Return whether the class of each image (N,) has enough units to judge its label."""
    pairs = np.unique(np.stack([targets.numpy(), np.asarray(units)]), axis=1)
    counts = torch.bincount(torch.from_numpy(pairs[0]), minlength=int(targets.max()) + 1)
    return counts[targets] >= FEWEST
