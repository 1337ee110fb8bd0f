"""What is measured about a data set under a backbone before anything is trained.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.split import first_of_units, units_of
from finetune.data.targets import strata_of
from finetune.features.ridge import class_sums
from finetune.features.scores import logme, logme_of_values
from finetune.randomness import derive, derive_each
from finetune.strategy.probing import PROBES, gain
from finetune.tasks import TASKS
from finetune.types import Confidence, Event, Evidence, Interval, Manifest, OnEvent, Sample, Size, ignore

MOST_PROBED, MOST_A_CLASS = 600, 4  # images in all, and per class if that comes to more: with many classes
MOST_CLASSES = 1000  # classes probed at most: a probe costs the third power of its images


def stratified_sample(manifest: Manifest, *, seed: int, most: int | None = None) -> tuple[Sample, ...]:
    """Return at most 600 images of train, or four per class, in the manifest's order; or at most `most`.

    Every class has its share, rounded up or down: the images are ordered by class, and by chance
    within a class, and taken at a fixed step. Of more than 1,000 classes 1,000 are drawn first, unless it is
    said how many images: fewer than four of each would leave a class too few to be told apart by.
    """
    train = manifest.split("train")
    if most is None:
        classes = _drawn_classes(manifest, seed)
        if manifest.task == "classify":
            train = tuple(sample for sample in train if classes.issuperset(sample.target.classes))
        most = max(MOST_PROBED, MOST_A_CLASS * len(classes))
    if len(train) <= most:
        return train
    chance = derive_each(seed, "evidence", [sample.file for sample in train])
    drawn = np.lexsort((chance, strata_of(train)))
    kept = {train[drawn[(2 * place + 1) * len(drawn) // (2 * most)]].file for place in range(most)}
    return tuple(sample for sample in train if sample.file in kept)


def _drawn_classes(manifest: Manifest, seed: int) -> set[int]:
    """Return at most 1,000 classes by their index, drawn by name."""
    names = manifest.classes
    order = sorted(range(len(names)), key=lambda index: derive(seed, "evidence", "class", names[index]))
    return set(order[:MOST_CLASSES])


@dataclass(frozen=True, slots=True)
class LookedAt:
    """What a look at some of the images themselves tells: see `Evidence`."""

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
    probing = PROBES[manifest.task]
    judged: dict[str, NDArray[Any]] = {}
    for done, (group, pooled) in enumerate(features.items()):
        on_event(Event.progress("probe layer groups", done, len(features)))
        judged[group] = probing.judged(pooled, targets, units)
    on_event(Event.progress("probe layer groups", len(features), len(features)))
    widths = [pooled.shape[1] for pooled in features.values()]
    joint = probing.judged(torch.cat(list(features.values()), dim=1), targets, units, widths)
    last = list(features)[-1]
    best = max(judged, key=lambda group: (probing.value(judged[group], targets), list(judged).index(group)))
    first = list(range(len(targets))) if units is None else first_of_units(units)
    has_one_class = manifest.task == "classify"
    return Evidence(
        size=_size(manifest, targets, units, gain(probing, judged[last], features[last], targets, units)),
        probe={group: probing.interval(of_group, targets, units) for group, of_group in judged.items()},
        joint=probing.interval(joint, targets, units),
        behind=probing.difference(judged[best], judged[last], targets, units),
        # These two assume that images are independent.
        spread=spread(features[last][first], targets[first]) if has_one_class else 0.0,
        logme=(logme if has_one_class else logme_of_values)(features[last][first], targets[first]),
        shift=looked_at.shift,
        shifts=looked_at.shifts,
        confidence=confidence,
        short_side=looked_at.short_side,
        grey_share=looked_at.grey_share,
        measure=TASKS[manifest.task].score,
        chance=probing.chance(targets),
    )


def _size(manifest: Manifest, targets: Tensor, units: Sequence[int] | None, gained: Interval) -> Size:
    """Return how much there is to learn from; for numbers, the tenths of the images count as classes."""
    train = manifest.split("train")
    of_train = units_of(train)
    classes = _classes_of(manifest, train)
    num_classes = len(manifest.classes) if manifest.task != "regress" else max(index for (index,) in classes) + 1
    totals = Counter(index for of_image in classes for index in of_image)
    counts = [totals[place] for place in range(num_classes)]
    pairs = {(unit, index) for unit, of_image in zip(of_train, classes, strict=True) for index in of_image}
    by_class = Counter(index for _, index in pairs)
    apart = [by_class[place] for place in range(num_classes)]
    return Size(
        num_images=len(train),
        num_classes=len(manifest.classes),
        images_per_class_min=min(apart),
        images_per_class_median=median(apart),
        imbalance=max(counts) / max(min(counts), 1),
        num_probed=len(targets) if units is None else len(set(units)),
        gain=gained,
        num_independent=len(set(of_train)),
        num_classes_probed=len(torch.unique(targets)) if manifest.task == "classify" else None,
    )


def _classes_of(manifest: Manifest, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    if manifest.task == "regress":
        return [(tenth,) for tenth in strata_of(samples).tolist()]
    return [sample.target.classes for sample in samples]


def spread(features: Tensor, targets: Tensor) -> float:
    """Return the scatter of the class means over that within the classes, in standardised features (N, D).

    Corrected for how far chance alone scatters the means of few images: 0 if classes are not told apart.
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
