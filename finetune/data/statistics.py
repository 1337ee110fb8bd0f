"""Statistics of the pixels of a data set by channel: mean and deviation, least and greatest value.

Letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Numbers = tuple[float, ...]  # of each channel
LEVEL, FULL_LEVEL = 1 / 255, 1 / 65535  # of pixels of 8 bits, and of stacks: dividing by less would show noise


def mean_and_deviation(batches: Iterable[Tensor], least_deviation: float = LEVEL) -> tuple[Numbers, Numbers]:
    """Return the mean and the deviation of each channel over images (B, C, H, W) with values between 0 and 1."""
    count, total, squares = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for images in batches:
        pixels = images.double().cpu()
        count += pixels[:, 0].numel()
        total = total + pixels.sum(dim=(0, 2, 3))
        squares = squares + pixels.square().sum(dim=(0, 2, 3))
    mean = total / count
    return _rounded(mean), _rounded((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(least_deviation))


def least_and_span(batches: Iterable[Tensor], least_deviation: float = LEVEL) -> tuple[Numbers, Numbers]:
    """Return the least value of each channel, and how far the greatest is from it."""
    least, most = torch.full((1,), torch.inf), torch.full((1,), -torch.inf)
    for images in batches:
        pixels = images.cpu()
        least = torch.minimum(least, pixels.amin(dim=(0, 2, 3)))
        most = torch.maximum(most, pixels.amax(dim=(0, 2, 3)))
    return _rounded(least), _rounded((most - least).clamp_min(least_deviation))


def _rounded(values: Tensor) -> Numbers:
    return tuple(float(f"{value:.6g}") for value in values.tolist())


STATISTICS = {"data": mean_and_deviation, "min-max": least_and_span}
