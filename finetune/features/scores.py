"""How well features serve a classification before any classifier is trained: LogME, H-score, k-NN.

More is better for each. They compare backbones on the same images; across data sets they mean nothing.

Letters: N images, D features, K classes, M = min(N, D) singular values, T trial points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.errors import TrainingError
from finetune.features.ridge import ROWS_AT_ONCE, class_sums

NEIGHBOURS = 10
TEMPERATURE = 0.07
RATIOS = (-12.0, 8.0)  # powers of ten of alpha / beta that are tried, times the largest eigenvalue
POINTS, ZOOMS = 65, 3
NOISE = 1e-12  # least share of a label that counts as noise: a perfect fit would have infinite evidence


def logme(features: Tensor, targets: Tensor) -> float:
    """Return the log of the maximum evidence of (N, D) features for class indices (N,), per image.

    For the 0/1 labels y of each class that occurs: a linear regression y = F w + noise, with
    w ~ N(0, I / alpha) and noise ~ N(0, I / beta); the mean over classes of max log p(y | F) / N.
    With F F' = U diag(s) U', z = U' y and t = alpha / beta, the best beta is N / e(t), so that

        log p(y | F) = 1/2 sum_i log(t / (t + s_i)) - N/2 log(2 pi e(t) / N) - N/2
        e(t) = sum_i z_i^2 t / (t + s_i) + |y|^2 - |z|^2

    is maximised over t alone, on a grid that is refined around its best point. (The paper's fixed
    point finds the same maximum; where the labels can be fitted without noise, D > N, it may not come
    to rest.) As in the paper, features are taken raw.
    Source: You et al. 2021, LogME, arXiv:2102.11005.

    Raises:
        TrainingError: a feature is not finite.
    """
    left, singular, _ = torch.linalg.svd(_checked(features), full_matrices=False)  # (N, M), (M,)
    occurring, columns, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    turned = class_sums(left, columns, len(occurring)) ** 2  # (K, M)
    return float(_evidence(turned, singular**2, sizes.double(), len(targets)).mean()) / len(targets)


def logme_of_values(features: Tensor, targets: Tensor) -> float:
    """Return the same for columns of values (N, K): several classes as 0 and 1, or numbers in deviations from the mean.

    Raises:
        TrainingError: a feature is not finite.
    """
    left, singular, _ = torch.linalg.svd(_checked(features), full_matrices=False)  # (N, M), (M,)
    values = targets.double()
    if not torch.isin(targets, torch.tensor([0.0, 1.0])).all():
        values = (values - values.mean(dim=0)) / values.std(dim=0, correction=0).clamp_min(1e-9)
    values = values[:, values.any(dim=0)]
    turned = (left.T @ values).T ** 2  # (K, M)
    return float(_evidence(turned, singular**2, values.square().sum(dim=0), len(targets)).mean()) / len(targets)


def _evidence(turned: Tensor, values: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Return the maximum over t of the log evidence for each class (K,), of so many images (K,), from z^2 (K, M).

    Classes whose best point is the same are refined together.
    """
    rest = (sizes - turned.sum(dim=1)).clamp_min(0)  # (K,)
    scale = float(values[0]) or 1.0
    best = torch.full_like(sizes, -math.inf)
    searched = [(*RATIOS, torch.arange(len(sizes)))]
    for _ in range(ZOOMS):
        refined = []
        for low, high, chosen in searched:
            powers = torch.linspace(low, high, POINTS, dtype=torch.double)
            ratios = 10 ** powers[:, None] * scale
            kept = ratios / (ratios + values)  # (T, M)
            error = kept @ turned[chosen].T + rest[chosen]  # (T, K)
            error = torch.maximum(error, NOISE * sizes[chosen])
            evidences = (kept.log().sum(dim=1)[:, None] - count * (2 * math.pi * error / count).log() - count) / 2
            best[chosen], places = evidences.max(dim=0)
            for place in torch.unique(places).tolist():
                ends = float(powers[max(place - 1, 0)]), float(powers[min(place + 1, POINTS - 1)])
                refined.append((*ends, chosen[places == place]))
        searched = refined
    return best


def h_score(features: Tensor, targets: Tensor) -> float:
    """Return the shrinkage-regularised H-score of (N, D) features for class indices (N,).

        H = (1 - a) tr(C_a^-1 B),  C_a = (1 - a) C + a tr(C) / D I

    with C the covariance of the features, B that of their class means, and a the shrinkage of Ledoit
    and Wolf. The plain H-score, a = 0, is of no use where D comes near N: C is singular or nearly so,
    and the score is that of noise (K - 1 for any features as soon as D >= N). So this form is taken
    always. Computed in the basis of the singular vectors, in which C is diagonal.
    Sources: Bao et al. 2019, An information-theoretic approach to transferability, ICIP; Ibrahim et
    al. 2021, Newer is not always better, arXiv:2110.06893; Ledoit & Wolf 2004, J. Multivar. Anal. 88.

    Raises:
        TrainingError: a feature is not finite.
    """
    checked = _checked(features)
    count, width = checked.shape
    left, singular, _ = torch.linalg.svd(checked - checked.mean(dim=0), full_matrices=False)  # (N, M), (M,)
    values = singular**2 / count  # of C; its other D - M are 0
    mean = float(values.sum()) / width
    if mean <= 0:
        return 0.0
    rows = left * singular  # (N, M): the centred images in that basis
    shrinkage = _shrinkage(rows, values, width)
    occurring, columns, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    between = class_sums(rows, columns, len(occurring)).square().T / sizes / count  # (M, K): of B's diagonal, by class
    ratio = between.sum(dim=1) / ((1 - shrinkage) * values + shrinkage * mean).clamp_min(NOISE * mean)
    return (1 - shrinkage) * float(ratio.sum())


def _shrinkage(rows: Tensor, values: Tensor, width: int) -> float:
    """Return how far to shrink a covariance towards a multiple of the identity, between 0 and 1."""
    squared = float(values.square().sum())  # |C|^2
    distance = squared - float(values.sum()) ** 2 / width  # |C - tr(C) / D I|^2
    variance = (float(rows.square().sum(dim=1).square().mean()) - squared) / len(rows)
    return min(1.0, max(0.0, variance) / distance) if distance > NOISE * squared else 0.0


def knn_top1(
    features: Tensor, targets: Tensor, *, neighbours: int = NEIGHBOURS, units: Sequence[int] | None = None
) -> float:
    """Return the leave-one-out top-1 of the nearest neighbours of (N, D) features by cosine.

    Each of an image's nearest others votes for its class with weight exp(cosine / 0.07); images of its own
    unit (copies, a group) have no vote.
    Source: Wu et al. 2018, arXiv:1805.01978; Caron et al. 2021, arXiv:2104.14294.

    Raises:
        TrainingError: a feature is not finite.
    """
    rows = normalize(_checked(features), dim=1)  # (N, D)
    unit = torch.arange(len(rows)) if units is None else torch.tensor(units)
    num_hits = 0
    for places in torch.split(torch.arange(len(rows)), ROWS_AT_ONCE):
        cosines = rows[places] @ rows.T  # (at once, N)
        cosines[unit[places][:, None] == unit] = -torch.inf
        nearest = cosines.topk(min(neighbours, len(rows) - 1), dim=1)
        weights = (nearest.values / TEMPERATURE).exp()  # (at once, neighbours)
        votes = weights.new_zeros(len(places), int(targets.max()) + 1)
        votes.scatter_add_(1, targets[nearest.indices], weights)
        is_told = votes.amax(dim=1) > 0  # an image without neighbours gets no class
        num_hits += int(((votes.argmax(dim=1) == targets[places]) & is_told).sum())
    return num_hits / len(rows)


def _checked(features: Tensor) -> Tensor:
    if not torch.isfinite(features).all():
        raise TrainingError("the backbone's features are not finite", hint="Use --set train.precision=float32.")
    return features.double()
