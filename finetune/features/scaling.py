"""Features brought to mean 0 and deviation 1. Letters: N images, D features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.errors import TrainingError

CONSTANT = 1e-6  # deviation, as a share of the largest value, below which float32 sees rounding only


def standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features with mean 0 and deviation 1, and both; a constant feature becomes 0 (its deviation infinite).

    Raises:
        TrainingError: a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise TrainingError("the backbone's features are not finite", hint="Use --set train.precision=float32.")
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    rounding = CONSTANT * features.abs().amax(dim=0)
    std = std.masked_fill(std <= rounding, torch.inf)
    return (features - mean) / std, mean, std


def whitening(scaled: Tensor, kind: str, *, epsilon: float) -> Tensor:
    """Return the matrix T (D, D) by which standardised features (N, D) become white: `scaled @ T` has covariance I.

    With the covariance C = U diag(l) U', PCA has T = U diag((l + e m)^-1/2), of which each column is a direction, and
    ZCA that times U', which stays as near to the features as can be; m is the mean of l, e is epsilon.
    Source: Kessy et al. 2018, Optimal whitening and decorrelation, arXiv:1512.00809.
    """
    values, vectors = torch.linalg.eigh(scaled.double().T @ scaled.double() / len(scaled))
    values = values.clamp_min(0)
    turned = vectors * (values + epsilon * values.mean()).clamp_min(torch.finfo(torch.double).tiny).rsqrt()
    white: Tensor = turned if kind == "pca" else turned @ vectors.T
    return white.float()


def blocks(units: Sequence[int] | None) -> list[Tensor]:
    """Return the indices of each unit that has several images."""
    if units is None:
        return []
    _, unit, counts = np.unique(np.asarray(units), return_inverse=True, return_counts=True)
    order = torch.from_numpy(np.argsort(unit, kind="stable"))
    return [block for block in torch.split(order, counts.tolist()) if len(block) > 1]
