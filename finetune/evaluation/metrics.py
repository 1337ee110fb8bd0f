"""top1, top5, macro_f1 and ece of logits, each with its interval. Letters: N images, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import share
from finetune.randomness import resampled
from finetune.types import Interval

BINS, DRAWS = 15, 300
FEWEST_FOR_TOP5 = 10  # classes: of fewer, half of them or more are among five guesses


def top1(logits: Tensor, targets: Tensor) -> float:
    """Yield the share of images whose largest logit is the right one."""
    return float((logits.argmax(dim=1) == targets).double().mean())


def measure(logits: Tensor, targets: Tensor, *, units: Sequence[int] | None = None) -> dict[str, Interval]:
    """Return the metrics of (N, K) logits; top5 only where there are more than five classes.

    macro_f1 averages over the classes that occur. ece is the expected calibration error in 15 bins of equal
    width; see `calibration` for its interval. Images of one unit (copies, a group) are drawn together.
    Source of ece: Guo et al. 2017, arXiv:1706.04599.
    """
    num_classes = logits.shape[1]
    guesses, right = logits.argmax(dim=1).numpy(), targets.numpy()
    hits = guesses == right
    found = {"top1": share(hits, units)}
    if num_classes >= FEWEST_FOR_TOP5:
        five = (logits.topk(5, dim=1).indices == targets[:, None]).any(dim=1).numpy()
        found["top5"] = share(five, units)
    weights = resampled(len(hits), units, draws=DRAWS, seed=0)
    macro = macro_f1(guesses, right, num_classes, np.ones(len(hits)))
    drawn = [macro_f1(guesses, right, num_classes, weight) for weight in weights]
    low, high = np.quantile(drawn, [0.025, 0.975])
    confidence = logits.softmax(dim=1).amax(dim=1)
    return found | {
        "macro_f1": Interval(macro, float(min(low, macro)), float(max(high, macro))),
        "ece": calibration(confidence, hits, weights),
    }


def macro_f1(guesses: NDArray[Any], right: NDArray[Any], num_classes: int, weight: NDArray[Any]) -> float:
    """Return the mean F1 over the classes that are guessed or right, each image (N,) so many times."""
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


def confusion(logits: Tensor, targets: Tensor) -> list[list[int]]:
    """Yield counts by true class (rows) and predicted class (columns)."""
    num_classes = logits.shape[1]
    flat = targets * num_classes + logits.argmax(dim=1)
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).tolist()
