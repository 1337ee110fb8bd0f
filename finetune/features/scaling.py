"""Features brought to a common place and scale. Letters: N images, D features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.errors import TrainingError

CONSTANT = 1e-6  # deviation, as a share of the largest value, below which float32 sees rounding only


def rescaled(features: Tensor, widths: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D) with mean 0 and deviations up to 1; their means (D,), and what they were divided by (D,).

    That is a feature's deviation, but no less than the root mean square of the deviations of its layer group, of which
    `widths` are the numbers of features side by side. So no feature stands out, and none that hardly
    varies is stretched: of few images those are noise, and a classifier would listen to it. A constant feature becomes
    0 (its divisor is infinite).

    Raises:
        TrainingError: a feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise TrainingError("the backbone's features are not finite", hint="Use --set train.precision=float32.")
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    is_constant = std <= CONSTANT * features.abs().amax(dim=0)
    divisors = torch.cat(
        [
            own.clamp_min(float(own[~still].double().square().mean().sqrt())) if not still.all() else own
            for own, still in zip(_by_group(std, widths), _by_group(is_constant, widths), strict=True)
        ]
    ).masked_fill(is_constant, torch.inf)
    return (features - mean) / divisors, mean, divisors


def _by_group(values: Tensor, widths: Sequence[int] | None) -> tuple[Tensor, ...]:
    return torch.split(values, [len(values)] if widths is None else list(widths))


def whitening(values: Tensor, kind: str, *, epsilon: float) -> Tensor:
    """Return the matrix T (D, D) by which features (N, D) of mean 0 become white: `values @ T` has covariance I.

    With the covariance C = U diag(l) U', PCA has T = U diag((l + e m)^-1/2), of which each column is a direction, and
    ZCA that times U', which stays as near to the features as can be; m is the mean of l, e is epsilon.
    Source: Kessy et al. 2018, Optimal whitening and decorrelation, arXiv:1512.00809.
    """
    found, vectors = torch.linalg.eigh(values.double().T @ values.double() / len(values))
    found = found.clamp_min(0)
    turned = vectors * (found + epsilon * found.mean()).clamp_min(torch.finfo(torch.double).tiny).rsqrt()
    white: Tensor = turned if kind == "pca" else turned @ vectors.T
    return white.float()


def spanning(values: Tensor) -> Tensor:
    """Return the matrix T (D, M) by which features (N, D) become as few as their images span, M = min(N, D).

    Regressions with an L2 penalty of strength / D on the features have their solution in that span: they have it on
    `values @ T` too, with strength / M, and with it in fewer steps of arithmetic.
    """
    count, width = values.shape
    if width <= count:
        return torch.eye(width)
    basis: Tensor = torch.linalg.qr(values.double().T).Q * (width / count) ** 0.5
    return basis.float()


def blocks(units: Sequence[int] | None) -> list[Tensor]:
    """Return the indices of each unit that has several images."""
    if units is None:
        return []
    _, unit, counts = np.unique(np.asarray(units), return_inverse=True, return_counts=True)
    order = torch.from_numpy(np.argsort(unit, kind="stable"))
    return [block for block in torch.split(order, counts.tolist()) if len(block) > 1]
