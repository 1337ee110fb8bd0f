"""How well the classes of images that may have several are told: average precision, F1, and thresholds.

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import percentiles
from finetune.randomness import Resamples
from finetune.types import Interval

FALLBACK = 0.5  # threshold of a class without images in val
DRAWS, FEWEST_DRAWS = 300, 100  # resamples, and of what is large
MOST_DRAWN = 300_000_000  # images times classes times resamples: more would take minutes


@dataclass(frozen=True, slots=True)
class JudgedLabels:
    """What metrics of several classes are computed from, and resamples of the images."""

    ranking: RankedImages
    shown: NDArray[np.bool_]  # (N, K): said by the thresholds
    right: NDArray[np.bool_]  # (N, K)
    weights: Iterable[NDArray[Any]]  # each (N,): how often an image is drawn

    @staticmethod
    def of(logits: Tensor, targets: Tensor, thresholds: Sequence[float], weights: Iterable[Any]) -> JudgedLabels:
        """Return logits (N, K) against 0 and 1 (N, K), by a threshold on the probability of each class."""
        scores, right = logits.double().numpy(), targets.numpy() > 0
        shown = logits.double().sigmoid().numpy() >= np.array(thresholds)
        return JudgedLabels(RankedImages.of(scores, right), shown, right, weights)


@dataclass(frozen=True, slots=True)
class RankedImages:
    """The images of each class from the surest to the least sure, and for equal ones the place of the last."""

    order: NDArray[np.int64]  # (N, K)
    right: NDArray[np.bool_]  # (N, K), in that order
    last: NDArray[np.int64]  # (N, K)

    @staticmethod
    def of(scores: NDArray[Any], right: NDArray[np.bool_]) -> RankedImages:
        """Return the ranking of images by their scores (N, K)."""
        order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=0)
        places = np.arange(len(scores))[:, None]
        is_last = np.ones(scores.shape, dtype=bool)
        is_last[:-1] = ranked[:-1] != ranked[1:]
        last = np.minimum.accumulate(np.where(is_last, places, len(scores))[::-1], axis=0)[::-1]
        return RankedImages(order, np.take_along_axis(right, order, axis=0), last)

    def average_precisions(self, weight: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Return the average precision of each class (K,), each image (N,) weighted; NaN for a class without images.

        For each image of the class, the share of its images among those at least as sure; the mean of these.
        """
        drawn = np.ones(self.order.shape) if weight is None else weight[self.order].astype(float)
        hits = drawn * self.right
        precision = np.cumsum(hits, axis=0) / np.maximum(np.cumsum(drawn, axis=0), 1e-12)
        total = hits.sum(axis=0)
        summed = (hits * np.take_along_axis(precision, self.last, axis=0)).sum(axis=0)
        return np.where(total > 0, summed / np.maximum(total, 1e-12), np.nan)

    def mean(self, weight: NDArray[Any] | None = None) -> float:
        """Return the mean over the classes that occur; 0 if none does."""
        return mean_of_known(self.average_precisions(weight))


def resamples_of(shape: tuple[int, ...], units: Sequence[int] | None) -> Resamples:
    """Return resamples of images (N, K): 300, of very many images and classes fewer, but 100 at least."""
    draws = max(FEWEST_DRAWS, min(DRAWS, MOST_DRAWN // max(1, math.prod(shape))))
    return Resamples(shape[0], units, draws=draws, seed=0)


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN; 0 if everything is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """Return the mAP of logits (N, K) against 0 and 1 (N, K)."""
    return RankedImages.of(logits.double().numpy(), targets.numpy() > 0).mean()


def map_interval(judged: JudgedLabels) -> Interval:
    """Return the mean average precision of the classes that occur."""
    return percentiles(judged.ranking.mean(), [judged.ranking.mean(weight) for weight in judged.weights])


def macro_f1_of_labels(judged: JudgedLabels) -> Interval:
    """Return the mean F1 of the classes that occur or are said."""
    drawn = [mean_of_known(f1) for f1 in _f1_drawn(judged, is_micro=False)]
    return percentiles(mean_of_known(_f1(*_counts(judged, np.ones(len(judged.right))))), drawn)


def micro_f1(judged: JudgedLabels) -> Interval:
    """Return the F1 over all pairs of an image and a class."""
    drawn = [float(f1) for f1 in _f1_drawn(judged, is_micro=True)]
    value = _f1(*(count.sum() for count in _counts(judged, np.ones(len(judged.right)))))
    return percentiles(float(np.nan_to_num(value)), np.nan_to_num(drawn).tolist())


def f1_by_class(judged: JudgedLabels) -> NDArray[np.float64]:
    """Return the F1 of each class (K,); NaN where it neither occurs nor is said."""
    return _f1(*_counts(judged, np.ones(len(judged.right))))


def _f1_drawn(judged: JudgedLabels, *, is_micro: bool) -> Iterator[NDArray[np.float64]]:
    for weight in judged.weights:
        counts = _counts(judged, weight)
        yield _f1(*(count.sum() for count in counts)) if is_micro else _f1(*counts)


def _counts(judged: JudgedLabels, weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how often each class (K,) is said and right, and how often it is said plus how often it is there."""
    drawn = weight.astype(float)
    hits = drawn @ (judged.shown & judged.right)
    return hits, drawn @ judged.shown + drawn @ judged.right


def _f1(hits: NDArray[Any], total: NDArray[Any]) -> NDArray[np.float64]:
    return np.where(total > 0, 2 * hits / np.maximum(total, 1e-12), np.nan)


def best_thresholds(logits: Tensor, targets: Tensor) -> tuple[float, ...]:
    """Return the threshold for each class: the probability that maximises its F1 on these images (N, K).

    It lies midway between two images; of equally good ones it is the nearest to 0.5. A class without images has 0.5.
    """
    probabilities, right = logits.double().sigmoid().numpy(), targets.numpy() > 0
    return tuple(_threshold(probabilities[:, place], right[:, place]) for place in range(right.shape[1]))


def _threshold(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    if not right.any():
        return FALLBACK
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(right[order])
    below = np.append(ranked[1:], 0.0)
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + right.sum())
    f1[ranked == below] = -1  # no threshold separates equal ones
    midway = (ranked + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(midway[best[np.abs(midway[best] - FALLBACK).argmin()]])
