"""Pictures into tensors: the plain view and the augmented one, as uint8 (3, H, W).

Normalising happens on the device, a batch at a time. Letters: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from finetune.settings import AugmentSection
from finetune.types import Preprocessing

View = Callable[[Image.Image], Tensor]


def plain_view(preprocessing: Preprocessing) -> View:
    """Yield the transform of evaluation: resize, then the central crop."""
    view: View = create_transform(
        input_size=(3, *preprocessing.image_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    return view


def augmented_view(preprocessing: Preprocessing, augment: AugmentSection) -> View:
    """Yield the transform of training: a random crop, flips and colour, as the recipe says."""
    if augment.level == "none":
        return plain_view(preprocessing)
    view: View = create_transform(
        input_size=(3, *preprocessing.image_size),
        is_training=True,
        interpolation=preprocessing.interpolation,
        scale=(augment.min_crop, 1.0),
        hflip=augment.horizontal_flip,
        vflip=augment.vertical_flip,
        color_jitter=augment.color_jitter or None,
        auto_augment=None,
        re_prob=0.0,
        normalize=False,
    )
    return view


def picture_side(preprocessing: Preprocessing) -> int:
    """Yield the pixels that the shorter side of a decoded picture keeps: 1.25 times what the plain view shows.

    Random crops of half the picture or more are then enlarged little or not at all.
    """
    return math.ceil(1.25 * max(preprocessing.image_size) / min(preprocessing.crop_pct, 1.0))


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:  # (B, 3, H, W) uint8
    """Yield float images with the backbone's mean and deviation taken out."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)  # (B, 3, H, W)
