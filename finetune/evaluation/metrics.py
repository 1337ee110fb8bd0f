"""The metrics of each task, each with its interval, in one table.

The first ones of a task are shown in short tables (`tasks.NUM_FIRST`).

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import percentiles, share
from finetune.evaluation.labels import JudgedLabels, macro_f1_of_labels, map_interval, micro_f1, resamples_of
from finetune.evaluation.numbers import JudgedNumbers, mae, r2, rmse
from finetune.evaluation.shares import auroc, balanced_accuracy, squared_errors, surprises
from finetune.randomness import Resamples
from finetune.tasks import Task
from finetune.types import Interval

BINS, DRAWS = 15, 300
ANY_SIZE = (0.0, math.inf)
FEWEST_FOR_TOP5 = 10  # classes: with fewer, five guesses hold half of them or more


def top1(logits: Tensor, targets: Tensor) -> float:
    """Return the share of images whose largest logit is the right one."""
    return float((logits.argmax(dim=1) == targets).double().mean())


@dataclass(frozen=True, slots=True)
class Predicted:
    """What metrics are computed from: logits (N, K) of images, what follows from them, and resamples of the images."""

    logits: Tensor
    guesses: NDArray[Any]  # (N,)
    right: NDArray[Any]  # (N,)
    units: Sequence[int] | None  # images of one unit (copies, a group) are drawn together
    weights: Iterable[NDArray[Any]]  # each (N,): how often an image is drawn; made anew each time, not held all at once

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def hits(self) -> NDArray[np.bool_]:
        is_right: NDArray[np.bool_] = self.guesses == self.right
        return is_right


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric with its interval, what its name means, and the fewest classes for which it says anything."""

    of: Callable[[Any], Interval | None]  # None: it is undefined on these images
    meaning: str
    fewest_classes: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)  # the least and the most it can be


def measure(logits: Tensor, targets: Tensor, *, units: Sequence[int] | None = None) -> dict[str, Interval]:
    """Return the metrics that apply to (N, K) logits of these images and classes, with 95 % intervals."""
    guesses, right = logits.argmax(dim=1).numpy(), targets.numpy()
    judged = Predicted(logits, guesses, right, units, Resamples(len(right), units, draws=DRAWS, seed=0))
    return _known(METRICS, judged)


def measure_task(
    task: Task,
    outputs: Tensor,
    targets: Tensor,
    *,
    units: Sequence[int] | None = None,
    thresholds: Sequence[float] = (),
) -> dict[str, Interval]:
    """Return the metrics of a task, from outputs (N, K) and targets; with several classes, at their `thresholds`."""
    if task == "classify":
        return measure(outputs, targets, units=units)
    weights = resamples_of(tuple(targets.shape), units)
    judged: JudgedLabels | JudgedNumbers
    if task == "multilabel":
        judged = JudgedLabels.of(outputs, targets, thresholds, weights)
    else:
        judged = JudgedNumbers.of(outputs, targets, weights)
    return _known(TASK_METRICS[task], judged)


def _known(rows: Mapping[str, Metric], judged: Any) -> dict[str, Interval]:
    fewest = getattr(judged, "num_classes", 1)
    found = {name: metric.of(judged) for name, metric in rows.items() if fewest >= metric.fewest_classes}
    return {name: interval for name, interval in found.items() if interval is not None}


def _top1(judged: Predicted) -> Interval:
    return share(judged.hits, judged.units)


def _top5(judged: Predicted) -> Interval:
    five = judged.logits.topk(5, dim=1).indices == torch.from_numpy(judged.right)[:, None]
    return share(five.any(dim=1).numpy(), judged.units)


def _macro_f1(judged: Predicted) -> Interval:
    """Return macro F1, the average over the classes that occur, with its interval."""
    drawn = [macro_f1(judged.guesses, judged.right, judged.num_classes, weight) for weight in judged.weights]
    value = macro_f1(judged.guesses, judged.right, judged.num_classes, np.ones(len(judged.right)))
    return percentiles(value, drawn)


def _ece(judged: Predicted) -> Interval:
    """Return the expected calibration error in 15 bins of equal width. Source: Guo et al. 2017, arXiv:1706.04599."""
    return calibration(judged.logits.softmax(dim=1).amax(dim=1), judged.hits, judged.weights)


def _balanced(judged: Predicted) -> Interval:
    return balanced_accuracy(judged.hits, judged.right, judged.units)


def _auroc(judged: Predicted) -> Interval | None:
    return auroc(judged.logits, torch.from_numpy(judged.right), judged.units)


def _mean_of(judged: Predicted, *, each: Callable[[Tensor, Tensor], NDArray[np.float64]]) -> Interval:
    """Return the mean of a number per image, with percentiles."""
    values = each(judged.logits, torch.from_numpy(judged.right))
    return percentiles(float(values.mean()), [float(weight @ values / weight.sum()) for weight in judged.weights])


def macro_f1(guesses: NDArray[Any], right: NDArray[Any], num_classes: int, weight: NDArray[Any]) -> float:
    """Return the mean F1 over the classes that are guessed or right, each image (N,) weighted."""
    guessed, actual = (np.bincount(x, weights=weight, minlength=num_classes) for x in (guesses, right))
    hits = np.bincount(right, weights=weight * (guesses == right), minlength=num_classes)
    total = guessed + actual
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def calibration(confidence: Tensor, hits: NDArray[Any], weights: Iterable[NDArray[Any]]) -> Interval:
    """Return the expected calibration error of the largest probabilities (N,), with an interval.

    Its value is biased upwards: chance alone sets bins off, so that percentiles of resamples miss the truth
    of a calibrated classifier always. By the triangle inequality the value is never further from the truth than
    the gaps of the bins are from theirs, summed over the bins; the interval reaches as far to both sides as that
    sum does in 99 % of the resamples (95 % held it too seldom where bins are small); docs/metrics.md has a simulation.
    """
    edges = torch.linspace(0, 1, BINS + 1)
    places = (torch.bucketize(confidence.float(), edges, right=True) - 1).clamp(0, BINS - 1).numpy()
    gaps = hits - confidence.double().numpy()

    def by_bin(weight: NDArray[Any]) -> NDArray[Any]:
        summed: NDArray[Any] = np.bincount(places, weights=gaps * weight, minlength=BINS)
        return np.asarray(summed / weight.sum())

    own = by_bin(np.ones(len(gaps)))
    reach = float(np.quantile([np.abs(by_bin(weight) - own).sum() for weight in weights], 0.99))
    value = float(np.abs(own).sum())
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def confusions(logits: Tensor, targets: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Return how many images of a class were taken for each class: (true, predicted, count) of pairs that occur.

    Most pairs do not: for 5,000 classes the whole matrix has 25 million counts.
    """
    taken = torch.stack([targets, logits.argmax(dim=1)], dim=1)
    pairs, counts = torch.unique(taken, dim=0, return_counts=True)
    return tuple((true, guess, count) for (true, guess), count in zip(pairs.tolist(), counts.tolist(), strict=True))


CALIBRATED_BY = "ece"
METRICS = {
    "top1": Metric(_top1, "share of images whose likeliest class is right"),
    "macro_f1": Metric(_macro_f1, "mean F1 of the classes"),
    CALIBRATED_BY: Metric(_ece, "gap between confidence and accuracy"),
    "top5": Metric(_top5, "share of images whose class is among the five likeliest", FEWEST_FOR_TOP5),
    "balanced_accuracy": Metric(_balanced, "mean over the classes of the share of their images that are right"),
    "auroc": Metric(_auroc, "how often an image of a class ranks above one of another; for two classes, the second"),
    "brier": Metric(partial(_mean_of, each=squared_errors), "squared error of the probabilities", bounds=(0.0, 2.0)),
    "nll": Metric(partial(_mean_of, each=surprises), "mean of -ln of the right class's probability", bounds=ANY_SIZE),
}
TASK_METRICS: dict[Task, dict[str, Metric]] = {
    "classify": METRICS,
    "multilabel": {
        "mAP": Metric(map_interval, "mean over the classes of the average precision"),
        "macro_f1": Metric(macro_f1_of_labels, "mean F1 of the classes, at their thresholds"),
        "micro_f1": Metric(micro_f1, "F1 over all pairs of image and class"),
    },
    "regress": {
        "r2": Metric(
            partial(JudgedNumbers.interval, measure=r2),
            "share of the variance explained",
            bounds=(-math.inf, 1.0),
        ),
        "mae": Metric(partial(JudgedNumbers.interval, measure=mae), "mean absolute error", bounds=ANY_SIZE),
        "rmse": Metric(
            partial(JudgedNumbers.interval, measure=rmse), "root of the mean squared error", bounds=ANY_SIZE
        ),
    },
}


def bounds_of(name: str) -> tuple[float, float]:
    """Return the range of values of a metric."""
    return next(rows[name].bounds for rows in TASK_METRICS.values() if name in rows)
