"""What images show, as arrays to compute with and as text of files. Letters: N images, K classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.tasks import BETWEEN_LABELS, AnyTarget, Labels, Quantity, Target, Task
from finetune.types import Manifest, Sample, Split
from finetune.wording import counted

TORN: dict[Task, str] = {  # how copies of one image contradict each other
    "classify": "in two classes",
    "multilabel": "with two sets of classes",
    "regress": "with two numbers",
}
TENTHS = 10  # parts of equal size that numbers are divided into where classes are needed


def target_of(task: Task, text: str, index: Mapping[str, int]) -> AnyTarget:
    """Return what `Manifest.label` wrote as a target again; `index` has the place of every class.

    Raises:
        KeyError: there is no such class. ValueError: it is no number.
    """
    if task == "regress":
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a finite number")
        return Quantity(number)
    if task == "multilabel":
        names = text.split(BETWEEN_LABELS) if text else []
        return Labels(tuple(sorted({index[name] for name in names})), len(index))
    return Target(index[text])


def known_target(task: Task, text: str, index: Mapping[str, int]) -> AnyTarget | None:
    """Return the same, or None for an unknown class or what is not a number."""
    try:
        return target_of(task, text, index)
    except (KeyError, ValueError):
        return None


def with_copies_joined(manifest: Manifest) -> Manifest:
    """Return a scanned tree whose copies in several class folders of a split are one image with all their classes."""
    if not manifest.is_tree:
        return manifest
    first: dict[tuple[str, Split | None], Sample] = {}
    for sample in manifest.samples:
        key = (sample.digest, sample.split)
        known = first.setdefault(key, sample)
        if known is not sample:
            first[key] = replace(known, target=_with_classes(known.target, sample.target))
    count = len(manifest.samples) - len(first)
    if not count:
        return manifest
    lie = counted(count, "file is a copy", "files are copies")
    note = f"{lie} of others: an image that lies in several class folders has all of these classes"
    return replace(manifest, samples=tuple(first.values()), notes=(*manifest.notes, note))


def _with_classes(target: AnyTarget, other: AnyTarget) -> Labels:
    assert isinstance(target, Labels)  # of a tree that is read for several classes
    return Labels(tuple(sorted({*target.classes, *other.classes})), target.num_classes)


def target_array(samples: Sequence[Sample]) -> NDArray[Any]:
    """Return class indices (N,) as int64; sets of classes as 0 and 1 (N, K), numbers as (N, 1), both float32."""
    targets = [sample.target for sample in samples]
    sets = [target for target in targets if isinstance(target, Labels)]
    if sets:
        rows = np.zeros((len(sets), sets[0].num_classes), dtype=np.float32)
        for place, target in enumerate(sets):
            rows[place, list(target.classes)] = 1
        return rows
    numbers = [target.value for target in targets if isinstance(target, Quantity)]
    if numbers:
        return np.array(numbers, dtype=np.float32)[:, None]
    return np.array([target.index for target in targets if isinstance(target, Target)], dtype=np.int64)


def strata_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the classes (N,) that images are stratified by.

    With several classes an image counts for its rarest one, with a number for the tenth of the images that it is in.
    """
    return strata(target_array(samples))


def strata(targets: NDArray[Any]) -> NDArray[np.int64]:
    """Return the same for an array of targets: see `target_array`."""
    if targets.ndim == 1:
        return targets.astype(np.int64)
    if targets.shape[1] == 1 and not np.isin(targets, (0, 1)).all():
        return _tenths(targets[:, 0])
    counts = np.where(targets > 0, targets.sum(axis=0), np.inf)  # (N, K)
    rarest: NDArray[np.int64] = np.where(targets.any(axis=1), counts.argmin(axis=1), targets.shape[1]).astype(np.int64)
    return rarest


def _tenths(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Return the tenth (N,) that each number is in, skipping empty tenths; equal numbers share a tenth."""
    borders = np.quantile(numbers, np.arange(1, TENTHS) / TENTHS) if len(numbers) else np.zeros(0)
    tenths = np.searchsorted(np.unique(borders), numbers, side="right")
    places: NDArray[np.int64] = np.unique(tenths, return_inverse=True)[1].astype(np.int64)
    return places
