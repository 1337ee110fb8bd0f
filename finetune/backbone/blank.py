"""Blank images with as many channels as a network takes, to see what it makes of their shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

USUAL = 3
NOTED = "num_channels"  # the attribute of a network


def set_channels(model: nn.Module, channels: int) -> None:
    """Note on a network, or a part of one, how many channels its images have."""
    setattr(model, NOTED, channels)


def channels_of(model: nn.Module) -> int:
    """Return how many channels the images of a network have."""
    return int(getattr(model, NOTED, USUAL))


def blank_images(model: nn.Module, image_size: tuple[int, int], *, count: int = 1) -> Tensor:
    """Return zeros (B, C, H, W) on the device and in the precision of a network's weights."""
    weight = next(model.parameters())
    return torch.zeros(count, channels_of(model), *image_size, device=weight.device, dtype=weight.dtype)
