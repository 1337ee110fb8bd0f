"""Images that are like none of the others: far from their nearest neighbours, in a backbone's features.

Letters: N images, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.errors import TrainingError
from finetune.randomness import derive

NEIGHBOURS = 5
FAR = 3.5  # deviations of the log distance above its class's median
FEWEST = 10  # images of a class that has a usual distance of its own
MOST_COMPARED = 20_000  # among more images, each is compared with this many, drawn at random
NARROW = 0.05  # least deviation of a log distance: in a set of near copies nothing is far
NEARLY_ZERO = 1e-6
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Odd:
    """An image far from all others: its distance, its class's median distance, and the gap in deviations."""

    place: int
    distance: float
    usual: float
    deviations: float


def odd_ones(features: Tensor, targets: Tensor, units: Sequence[int], *, seed: int) -> list[Odd]:
    """Return outlying images, the farthest first; the first image of each unit (copies, a group) is judged.

    An image's distance is the mean of 1 - cosine to the five nearest, of whatever class. It is far when
    its logarithm lies more than 3.5 deviations (1.4826 times the median deviation from the median) above
    the median of its class, of the whole set where the class has fewer than ten.
    Source: Iglewicz & Hoaglin 1993, for 3.5 such deviations; Sun et al. 2022, arXiv:2204.06507, for
    nearest neighbours of normalised features.

    Raises:
        TrainingError: a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise TrainingError("the backbone's features are not finite", hint="Use --set train.precision=float32.")
    first = np.unique(np.asarray(units), return_index=True)[1]
    if len(first) <= NEIGHBOURS:
        return []
    distances = _distances(normalize(features[torch.from_numpy(first)].float(), dim=1), seed=seed)
    logs, labels = np.log(np.maximum(distances, NEARLY_ZERO)), targets.numpy()[first]
    usual, odd_images = _usual(logs), []
    order = np.argsort(labels, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):  # the images of a class
        middle, spread = _usual(logs[mine]) if len(mine) >= FEWEST else usual
        for place in mine[logs[mine] > middle + FAR * spread].tolist():
            deviations = (float(logs[place]) - middle) / spread
            odd_images.append(Odd(int(first[place]), float(distances[place]), float(np.exp(middle)), deviations))
    return sorted(odd_images, key=lambda odd: -odd.deviations)


def _usual(logs: np.ndarray) -> tuple[float, float]:
    """Return the median of log distances, and their deviation."""
    middle = float(np.median(logs))
    return middle, max(1.4826 * float(np.median(np.abs(logs - middle))), NARROW)


def _distances(rows: Tensor, *, seed: int) -> np.ndarray:
    """Return the mean distance (N,) of normalised rows (N, D) to their nearest others."""
    drawn = np.random.default_rng(derive(seed, "odd")).permutation(len(rows))[:MOST_COMPARED]
    compared = torch.from_numpy(np.sort(drawn))
    others, parts = rows[compared], []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        cosines = rows[start : start + ROWS_AT_ONCE] @ others.T
        here = torch.arange(start, start + len(cosines))
        cosines[here[:, None] == compared] = -torch.inf
        parts.append(1 - cosines.topk(NEIGHBOURS, dim=1).values.mean(dim=1))
    return torch.cat(parts).numpy()
