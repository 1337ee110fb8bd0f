"""Images into tensors: the plain view and the augmented one, as uint8 (3, H, W).

The plain view is timm's evaluation transform of the image as it was decoded, so that any other program that
does what the data config says sees the same. Augmented views are cut from a smaller image.

Normalising happens on the device, a batch at a time. Letters: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from finetune.images.decode import smaller
from finetune.settings import AugmentSection
from finetune.types import Preprocessing


@dataclass(frozen=True, slots=True)
class View:
    """How an RGB image becomes a tensor; where it has a `side`, from the image made smaller to that."""

    transform: Callable[[Image.Image], Tensor]
    side: int | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether this is the view of evaluation."""
        return self.side is None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the uint8 tensor (3, H, W) of an image."""
        return self.transform(smaller(image, self.side))


def plain_view(preprocessing: Preprocessing) -> View:
    """Return the transform of evaluation: resize, then the central crop."""
    transform = create_transform(
        input_size=(3, *preprocessing.image_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.mean,  # the colour of a border
        normalize=False,
    )
    return View(transform)


def augmented_view(preprocessing: Preprocessing, augment: AugmentSection) -> View:
    """Return the transform of training: a random crop, flips and colour, as the recipe says."""
    if augment.level == "none":
        return plain_view(preprocessing)
    transform = create_transform(
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
    return View(transform, picture_side(preprocessing))


def picture_side(preprocessing: Preprocessing) -> int:
    """Return the pixels of the shorter side from which augmented views are cut: 1.25 times what the plain view shows.

    Random crops of half the image or more are then enlarged little or not at all.
    """
    return math.ceil(1.25 * max(preprocessing.image_size) / min(preprocessing.crop_pct, 1.0))


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:  # (B, 3, H, W) uint8
    """Return float images with the backbone's mean and deviation taken out."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)  # (B, 3, H, W)
