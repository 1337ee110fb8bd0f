"""Batches whose images are mixed with each other, and their classes with them. Letters: B batch, K classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix

from finetune.optim.losses import shares_of
from finetune.sections import RegulariseSection


def mixed(inputs: Any, targets: Tensor, *, regularise: RegulariseSection, num_classes: int) -> tuple[Any, Tensor]:
    """Return a batch mixed as a recipe asks, with the shares of its classes (B, K), by torch's global generator.

    With both, each has its turn by chance. CutMix is for images (B, C, H, W); mixup also mixes what a trunk yields,
    one tensor or several, all by one share.
    Sources: Zhang et al. 2018, arXiv:1710.09412 (mixup); Verma et al. 2019, arXiv:1806.05236 (of features);
    Yun et al. 2019, arXiv:1905.04899 (CutMix).
    """
    cuts = regularise.cutmix and isinstance(inputs, Tensor) and inputs.ndim == 4
    if cuts and (not regularise.mixup or bool(torch.rand(()) < 0.5)):
        images, shares = CutMix(alpha=regularise.cutmix, num_classes=num_classes)(inputs, targets)
        return images, shares
    if not regularise.mixup:
        return inputs, targets
    share = float(torch._sample_dirichlet(torch.full((2,), regularise.mixup))[0])  # Beta(a, a)
    shares = targets if targets.is_floating_point() else shares_of(targets, num_classes, smoothing=0.0)
    columns = [_blend(part, share) for part in (inputs if isinstance(inputs, tuple) else (inputs,))]
    return tuple(columns) if isinstance(inputs, tuple) else columns[0], _blend(shares, share)


def brightened(inputs: Any, strength: float) -> Any:
    """Return feature maps with each channel randomly made brighter or darker, within its range; others unchanged.

    Of every image and channel, values are stretched to 0 to 1 over the map, shifted by U(-s, s), cut, and put back.
    Source: Bär et al. 2024, Frozen feature augmentation for few-shot image classification, arXiv:2403.10519 (c2FroFA).
    """
    if not strength or not isinstance(inputs, tuple):
        return inputs
    return tuple(_brighter(part, strength) if part.ndim >= 3 else part for part in inputs)


def _brighter(maps: Tensor, strength: float) -> Tensor:
    over = tuple(range(2, maps.ndim)) if maps.ndim == 4 else (1,)  # positions of (B, C, H, W), or of tokens (B, N, D)
    low, high = maps.amin(dim=over, keepdim=True), maps.amax(dim=over, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    shift = (2 * torch.rand_like(low) - 1) * strength
    return ((maps - low) / span + shift).clamp(0, 1) * span + low


def _blend(rows: Tensor, share: float) -> Tensor:
    """Return each row mixed with the one before it."""
    return share * rows + (1 - share) * rows.roll(1, dims=0)
