"""What is measured about a data set under a backbone before anything is trained.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.split import first_of_units, units_of
from finetune.evaluation.intervals import paired, share
from finetune.features.probe import class_sums, loo_guesses
from finetune.features.scores import logme
from finetune.randomness import derive, derive_each
from finetune.types import FEWEST_PROBED, Confidence, Event, Evidence, Interval, Manifest, OnEvent, Sample, Size, ignore

MOST_PROBED, MOST_A_CLASS = 600, 4  # images; the second, per class, where it comes to more: with many classes
MOST_CLASSES = 1000  # probed at most: a probe costs the third power of its images


def stratified_sample(manifest: Manifest, *, seed: int, most: int | None = None) -> tuple[Sample, ...]:
    """Return at most 600 images of train, or four per class, in the manifest's order; or at most `most`.

    Every class has its share, rounded up or down: the images are ordered by class, and by chance
    within a class, and taken at a fixed step. Of more than 1,000 classes 1,000 are drawn first, unless it is
    said how many images: fewer than four of each would leave a class too few to be told apart by.
    """
    train = manifest.split("train")
    if most is None:
        classes = _drawn_classes(manifest, seed)
        train = tuple(sample for sample in train if sample.target.index in classes)
        most = max(MOST_PROBED, MOST_A_CLASS * len(classes))
    if len(train) <= most:
        return train
    chance = derive_each(seed, "evidence", [sample.file for sample in train])
    drawn = np.lexsort((chance, np.array([sample.target.index for sample in train])))
    kept = {train[drawn[(2 * place + 1) * len(drawn) // (2 * most)]].file for place in range(most)}
    return tuple(sample for sample in train if sample.file in kept)


def _drawn_classes(manifest: Manifest, seed: int) -> set[int]:
    """Return at most 1,000 classes by their index, drawn by name."""
    names = manifest.classes
    order = sorted(range(len(names)), key=lambda index: derive(seed, "evidence", "class", names[index]))
    return set(order[:MOST_CLASSES])


@dataclass(frozen=True, slots=True)
class LookedAt:
    """What some of the images themselves tell: see `Evidence`."""

    short_side: float | None = None
    grey_share: float | None = None
    shift: Interval | None = None
    shifts: dict[str, float] = field(default_factory=dict)


def evidence_of(
    manifest: Manifest,
    features: dict[str, Tensor],
    targets: Tensor,
    *,
    looked_at: LookedAt | None = None,
    confidence: Confidence | None = None,
    units: Sequence[int] | None = None,
    on_event: OnEvent = ignore,
) -> Evidence:
    """Return the evidence from pooled features (N, D) of a sample, by layer group in order.

    `units` numbers those images of the sample that are copies or of one group: only other units judge an image.
    """
    looked_at = looked_at or LookedAt()
    train = manifest.split("train")
    of_train = units_of(train)
    counts = list(manifest.counts("train").values())
    pairs = {(unit, sample.target.index) for unit, sample in zip(of_train, train, strict=True)}
    by_class = Counter(index for _, index in pairs)
    apart = [by_class[place] for place in range(len(counts))]
    hits: dict[str, NDArray[np.bool_]] = {}
    for done, (group, pooled) in enumerate(features.items()):
        on_event(Event.progress("probe layer groups", done, len(features)))
        hits[group] = _hits(pooled, targets, units)
    on_event(Event.progress("probe layer groups", len(features), len(features)))
    joint = _hits(torch.cat(list(features.values()), dim=1), targets, units)
    last = list(features)[-1]
    best = max(hits, key=lambda group: (hits[group].mean(), list(hits).index(group)))
    first = list(range(len(targets))) if units is None else first_of_units(units)
    size = Size(
        num_images=sum(counts),
        num_classes=len(manifest.classes),
        images_per_class_min=min(apart),
        images_per_class_median=median(apart),
        imbalance=max(counts) / max(min(counts), 1),
        num_probed=len(targets) if units is None else len(set(units)),
        gain=_gain(hits[last], features[last], targets, units),
        num_independent=len(set(of_train)),
        num_classes_probed=len(torch.unique(targets)),
    )
    return Evidence(
        size=size,
        probe={group: share(group_hits, units) for group, group_hits in hits.items()},
        joint=share(joint, units),
        behind=paired(hits[best], hits[last], units),
        spread=spread(features[last][first], targets[first]),  # these two take images to be independent
        logme=logme(features[last][first], targets[first]),
        shift=looked_at.shift,
        shifts=looked_at.shifts,
        confidence=confidence,
        short_side=looked_at.short_side,
        grey_share=looked_at.grey_share,
    )


def spread(features: Tensor, targets: Tensor) -> float:
    """Return the scatter of the class means over that within the classes, in standardised features (N, D).

    Free of what chance alone scatters the means of few images: 0 where classes are not told apart.
    """
    values = features.double()
    values = (values - values.mean(dim=0)) / values.std(dim=0, correction=0).clamp_min(1e-9)
    _, columns, counts = torch.unique(targets, return_inverse=True, return_counts=True)  # (K,)
    means = class_sums(values, columns, len(counts)) / counts[:, None]  # (K, D)
    free = len(values) - len(counts)
    if free <= 0:
        return 0.0
    within = float((values - means[columns]).square().sum() / free)
    between = float((counts[:, None] * means.square()).sum() - (len(counts) - 1) * within) / len(values)
    return max(0.0, between) / max(within, 1e-9)


def _hits(features: Tensor, targets: Tensor, units: Sequence[int] | None) -> NDArray[np.bool_]:
    """Return for each image whether a ridge classifier fitted to the others gets it right."""
    if (len(targets) if units is None else len(set(units))) < FEWEST_PROBED:
        return np.zeros(len(targets), dtype=bool)
    return (loo_guesses(features, targets, units=units) == targets).numpy()


def _gain(hits: NDArray[np.bool_], features: Tensor, targets: Tensor, units: Sequence[int] | None) -> Interval:
    """Return what the probe gains from twice the images: against classifiers fitted to one half, every class halved.

    It is not known where the images are too few to be halved.
    """
    unit = np.arange(len(targets)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    first = torch.tensor(first_of_units(unit.tolist()))
    order = torch.argsort(targets[first], stable=True).numpy()  # of units: none is divided
    if len(order) // 2 < FEWEST_PROBED:
        return Interval(0.0, -1.0, 1.0)
    of_halves = np.zeros(len(targets), dtype=bool)
    for start in (0, 1):
        half = torch.from_numpy(np.flatnonzero(np.isin(unit, order[start::2])))
        own = None if units is None else [int(unit[place]) for place in half.tolist()]
        of_halves[half.numpy()] = _hits(features[half], targets[half], own)
    return paired(hits, of_halves, units)
