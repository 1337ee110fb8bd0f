"""What pixels of a data set are, channel by channel: mean and deviation, least and greatest value.

Letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Triple = tuple[float, float, float]
LEAST_DEVIATION = 1 / 255  # of a channel that is nearly the same everywhere: to divide by less would be to show noise


def mean_and_deviation(batches: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """Return the mean and the deviation of each channel over images (B, 3, H, W) with values between 0 and 1."""
    count, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for images in batches:
        pixels = images.double().cpu()
        count += pixels.numel() // 3
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))
    mean = total / count
    return _triple(mean), _triple((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION))


def least_and_span(batches: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """Return the least value of each channel, and how far the greatest is from it."""
    least, most = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
    for images in batches:
        pixels = images.cpu()
        least = torch.minimum(least, pixels.amin(dim=(0, 2, 3)))
        most = torch.maximum(most, pixels.amax(dim=(0, 2, 3)))
    return _triple(least), _triple((most - least).clamp_min(LEAST_DEVIATION))


def _triple(values: Tensor) -> Triple:
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


STATISTICS = {"data": mean_and_deviation, "min-max": least_and_span}
