"""How well each class is told if an image may have several. Letters: N images, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.evaluation.labels import JudgedLabels, f1_by_class


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class on some images: how many have it, its average precision (None: none has it), F1 and threshold."""

    name: str
    num_images: int
    average_precision: float | None
    f1: float | None
    threshold: float


def figures_by_class(
    names: Sequence[str], logits: Tensor, targets: Tensor, thresholds: Sequence[float]
) -> tuple[ClassFigures, ...]:
    """Return the figures of every class, from logits (N, K) against 0 and 1 (N, K)."""
    judged = JudgedLabels.of(logits, targets, thresholds, ())
    columns = zip(
        names, judged.right.sum(axis=0).tolist(), judged.ranking.average_precisions().tolist(),
        f1_by_class(judged).tolist(), thresholds, strict=True,
    )  # fmt: skip
    return tuple(ClassFigures(name, count, _known(ap), _known(f1), limit) for name, count, ap, f1, limit in columns)


def _known(value: float) -> float | None:
    return None if value != value else value
