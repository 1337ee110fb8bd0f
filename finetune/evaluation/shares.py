"""The quality of probabilities for single-class images: AUROC, Brier score, NLL; and accuracy averaged over classes.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import independent, wilson
from finetune.types import Interval

AT_ONCE = 4096  # images: double precision of all at once would take several times the memory of the logits
DECIMALS = 12  # of log probabilities: what lies beyond is rounding, which would part equal ones
Numbers = NDArray[np.float64]


def log_normalisers(logits: Tensor) -> Tensor:
    """Return the logarithm of the sum of the exponentials of each row of (N, K), in double precision (N,)."""
    return torch.cat([part.double().logsumexp(dim=1) for part in torch.split(logits, AT_ONCE)])


def surprises(logits: Tensor, targets: Tensor) -> Numbers:
    """Return minus the logarithm of the probability of the right class of each image (N,)."""
    right = logits.gather(1, targets[:, None])[:, 0].double()
    found: Numbers = (log_normalisers(logits) - right).clamp(min=0).numpy()
    return found


def squared_errors(logits: Tensor, targets: Tensor) -> Numbers:
    """Return the squared error of the probabilities of each image (N,), summed over the classes: between 0 and 2.

    Of two classes, whose errors are equal, only one counts: between 0 and 1.
    Source: Brier 1950, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78.
    """
    found = []
    for part, right in zip(torch.split(logits, AT_ONCE), torch.split(targets, AT_ONCE), strict=True):
        off = part.double().softmax(dim=1)  # (B, K)
        off[torch.arange(len(right)), right] -= 1
        found.append(off.square().sum(dim=1))
    errors: Numbers = torch.cat(found).numpy()
    return errors / 2 if logits.shape[1] == 2 else errors


def balanced_accuracy(hits: NDArray[Any], right: NDArray[Any], units: Sequence[int] | None) -> Interval:
    """Return the mean over the classes that occur of the share of their images that are hits (N,)."""
    _, place, counts = np.unique(right, return_inverse=True, return_counts=True)
    shares = np.bincount(place, weights=hits) / counts
    pull = (hits - shares[place]) * len(right) / (len(counts) * counts[place])
    return _of_pulls(float(shares.mean()), pull, units, most=len(counts) ** 2 / float((1 / counts).sum()))


def auroc(logits: Tensor, targets: Tensor, units: Sequence[int] | None) -> Interval | None:
    """Return how often an image of a class has a higher probability of it than an image of another; equal ones half.

    Of two classes that of the second; of more the mean over the classes that occur, each against all others. None
    where all images have one class. The interval is of DeLong's variance, from what each image adds to the mean.
    Source: DeLong et al. 1988, Comparing the areas under two or more correlated receiver operating characteristic
    curves, Biometrics 44.
    """
    right, norms = targets.numpy(), log_normalisers(logits)
    present = [1] if logits.shape[1] == 2 else np.unique(right).tolist()
    pull, values, balanced = np.zeros(len(right)), [], []
    for label in present:
        is_of = right == label
        count = int(is_of.sum())
        if not 0 < count < len(right):
            continue
        logs = (logits[:, label].double() - norms).numpy()
        value, above = _ranked(logs.round(DECIMALS), is_of)
        pull += (above - value) * np.where(is_of, len(right) / count, len(right) / (len(right) - count))
        values.append(value)
        balanced.append(4 * count * (len(right) - count) / len(right))  # of equally many of both: all images
    if not values:
        return None
    most = min(len(right), len(values) ** 2 / sum(1 / count for count in balanced))
    return _of_pulls(float(np.mean(values)), pull / len(values), units, most=most)


def _ranked(scores: Numbers, is_of: NDArray[np.bool_]) -> tuple[float, Numbers]:
    """Return the AUROC of scores (N,), and the share of the other side that each image is on the right side of (N,)."""
    ours, others = np.sort(scores[is_of]), scores[~is_of]
    below, up_to = np.searchsorted(ours, others, side="left"), np.searchsorted(ours, others, side="right")
    place = np.searchsorted(ours, scores[is_of], side="left")
    num_below = np.cumsum(np.bincount(up_to, minlength=len(ours) + 1))[place]
    num_up_to = np.cumsum(np.bincount(below, minlength=len(ours) + 1))[place]
    share = np.empty(len(scores))
    share[is_of] = (num_below + num_up_to) / (2 * len(others))
    share[~is_of] = 1 - (below + up_to) / (2 * len(ours))
    return float(share[is_of].mean()), share


def _of_pulls(value: float, pull: Numbers, units: Sequence[int] | None, *, most: float) -> Interval:
    """Return the score interval of a value between 0 and 1, on as many images as its variance speaks of.

    `pull` is how much each image moves it (N,), times N; their mean is 0. Where images are few they may by chance all
    say the same, so that at most so many images count. Images of one unit count as far as they are independent.
    """
    scatter = float((pull**2).mean()) / len(pull)
    count = min(most, value * (1 - value) / scatter) if scatter > 0 else most
    return wilson(value, count * independent(pull, units) / len(pull))
