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
    """Yield at most `most` images of train, every class in its share, in the manifest's order."""
    train = manifest.split("train")
    if len(train) <= most:
        return train
    drawn = sorted(train, key=lambda s: derive(seed, "evidence", s.file))
    rank: dict[int, int] = {}
    keyed = []
    counts = manifest.counts("train")
    for sample in drawn:
        label = sample.target.index
        rank[label] = rank.get(label, 0) + 1
        keyed.append((rank[label] / counts[manifest.classes[label]], sample.file))
    kept = {file for _, file in sorted(keyed)[:most]}
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
