"""What is measured about a data set under a backbone before anything is trained.

Letters: N images, D features.
"""

from __future__ import annotations

from statistics import median

from torch import Tensor

from finetune.evaluation.intervals import wilson
from finetune.features.probe import loo_ridge
from finetune.randomness import derive
from finetune.types import Evidence, Manifest, Sample

MOST_PROBED = 1000


def stratified_sample(manifest: Manifest, *, seed: int, most: int = MOST_PROBED) -> tuple[Sample, ...]:
    """Yield at most `most` images of train, in the manifest's order.

    Every class has its share, rounded up or down: of the images ordered by class, and by chance
    within a class, every so-manieth is taken.
    """
    train = manifest.split("train")
    if len(train) <= most:
        return train
    drawn = sorted(train, key=lambda s: (s.target.index, derive(seed, "evidence", s.file)))
    kept = {drawn[(2 * place + 1) * len(drawn) // (2 * most)].file for place in range(most)}
    return tuple(sample for sample in train if sample.file in kept)


def measure(manifest: Manifest, features: dict[str, Tensor], targets: Tensor) -> Evidence:
    """Yield the evidence from pooled features (N, D) of a sample, by layer group in order."""
    counts = list(manifest.counts("train").values())
    probe = {
        group: wilson(loo_ridge(found, targets, num_classes=len(manifest.classes)), len(targets))
        for group, found in features.items()
    }
    return Evidence(
        num_images=sum(counts),
        num_classes=len(manifest.classes),
        images_per_class_min=min(counts),
        images_per_class_median=median(counts),
        num_probed=len(targets),
        probe=probe,
    )
