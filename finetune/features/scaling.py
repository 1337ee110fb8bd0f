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


def blocks(units: Sequence[int] | None) -> list[Tensor]:
    """Return the indices of each unit that has several images."""
    if units is None:
        return []
    _, unit, counts = np.unique(np.asarray(units), return_inverse=True, return_counts=True)
    order = torch.from_numpy(np.argsort(unit, kind="stable"))
    return [block for block in torch.split(order, counts.tolist()) if len(block) > 1]
