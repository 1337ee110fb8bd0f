"""Images into tensors: the plain view and the augmented one, as uint8 (3, H, W), of stacks as float32 (C, H, W).

The plain view is timm's evaluation transform of the image as it was decoded, so that any other program that
does what the data config says sees the same. Augmented views are cut from a smaller image.

Normalising happens on the device, a batch at a time. Letters: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import Compose, v2

from finetune.images.augmentation import Pieces, pieces_of
from finetune.images.shapes import GAP, size_within, smaller
from finetune.images.stacks import Stack
from finetune.randomness import forked
from finetune.sections import AugmentSection
from finetune.types import BRIGHTNESS, FIVE_CROPS_PCT, Preprocessing


@dataclass(frozen=True, slots=True)
class View:
    """How an image becomes a tensor; where it has a `side`, from the image made smaller to that."""

    transform: Callable[[Any], Tensor]
    side: int | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether this is the view of evaluation."""
        return self.side is None

    def __call__(self, image: Image.Image | Stack) -> Tensor:
        """Return the tensor (3, H, W) of an image, or (C, H, W) of a stack, of numbers from 0 to 255."""
        return self.transform(image if self.side is None else source_of(image, self.side))


def plain_view(preprocessing: Preprocessing) -> View:
    """Return the transform of evaluation: resize, then the central crop."""
    if preprocessing.bands.is_full:
        return View(_EachChannel(tuple(_plain(one) for one in _channels_of(preprocessing))))
    return View(_plain(preprocessing))


def _plain(preprocessing: Preprocessing) -> Compose:
    transform: Compose = create_transform(
        input_size=(3, *preprocessing.image_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.border,
        normalize=False,
    )
    return transform


def five_crops_view(preprocessing: Preprocessing) -> View:
    """Return a view of the four corners and the middle of an image, below each other: (C, 5 H, W).

    They are cut out of the image as evaluation resizes it, but show at most `FIVE_CROPS_PCT` of its shorter side, so
    that they differ. Source: Krizhevsky et al. 2012, who cut 224 of 256 pixels.
    """
    if preprocessing.bands.is_full:
        return View(_EachChannel(tuple(map(_five_crops, _channels_of(preprocessing)))))
    return View(_five_crops(preprocessing))


def _five_crops(preprocessing: Preprocessing) -> _FiveCrops:
    crop_pct = min(preprocessing.crop_pct, FIVE_CROPS_PCT)
    resize, _, as_tensor = _plain(replace(preprocessing, crop_pct=crop_pct)).transforms
    return _FiveCrops(resize, v2.FiveCrop(preprocessing.image_size), as_tensor)


@dataclass(frozen=True, slots=True)
class _FiveCrops:
    """What resizes an image, cuts five parts out of it, and makes tensors of them, which are joined in height."""

    resize: Callable[[Image.Image], Image.Image]
    cut: Callable[[Image.Image], Sequence[Image.Image]]
    as_tensor: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:  # (C, 5 H, W)
        return torch.cat([self.as_tensor(part) for part in self.cut(self.resize(image))], dim=1)


def augmented_view(preprocessing: Preprocessing, augment: AugmentSection) -> View:
    """Return the transform of training: a random crop, flips and colour, as the recipe says."""
    pieces = pieces_of(augment)
    if pieces is None:
        return plain_view(preprocessing)
    side, erased = picture_side(preprocessing), tuple(_erased(pieces, preprocessing))
    if not preprocessing.bands.is_full:
        return View(Compose([*_drawn(pieces, preprocessing), *erased]), side)
    each = tuple(Compose(_drawn(pieces, one)) for one in _channels_of(preprocessing))
    return View(Compose([_EachChannel(each), *erased]), side)


def _drawn(pieces: Pieces, preprocessing: Preprocessing) -> list[Callable[[Any], Any]]:
    """Return what is drawn for an image, in order, but for what is blotted out of its tensor."""
    cut, _, as_tensor = create_transform(
        input_size=(3, *preprocessing.image_size),
        is_training=True,
        interpolation=preprocessing.interpolation,
        scale=(pieces.min_crop, 1.0),
        hflip=pieces.horizontal_flip,
        vflip=pieces.vertical_flip,
        color_jitter=None,
        auto_augment=None,
        re_prob=0.0,
        normalize=False,
        separate=True,
    )
    return [cut, *_varied(pieces, preprocessing), as_tensor]


def _channels_of(preprocessing: Preprocessing) -> list[Preprocessing]:
    """Return the preprocessing of each channel by itself, which differs by the number that its border has."""
    return [replace(preprocessing, channels=1, mean=(mean,), std=(1.0,)) for mean in preprocessing.mean]


@dataclass(frozen=True, slots=True)
class _EachChannel:
    """What is done to each channel of a stack by itself; what is drawn is the same for all."""

    transforms: tuple[Callable[[Image.Image], Tensor], ...]

    def __call__(self, stack: Stack) -> Tensor:
        seed, parts = int(torch.randint(2**62, ())), []
        for transform, channel in zip(self.transforms, stack.channels, strict=True):
            with forked(seed):
                parts.append(transform(channel))
        return torch.cat(parts)  # (C, H, W)


def _varied(pieces: Pieces, preprocessing: Preprocessing) -> Iterator[Callable[[Image.Image], Image.Image]]:
    """Yield what is done to the image that was cut: the policy, colours, a rotation."""
    colour = tuple(round(255 * part) for part in preprocessing.border)
    if pieces.policy != "none":
        yield POLICIES[pieces.policy](colour)
    if pieces.color_jitter or pieces.hue:
        yield v2.ColorJitter(*[pieces.color_jitter] * 3, pieces.hue)
    if pieces.rotate:
        yield v2.RandomRotation(pieces.rotate, interpolation=v2.InterpolationMode.BILINEAR, fill=colour)


def _erased(pieces: Pieces, preprocessing: Preprocessing) -> Iterator[Callable[[Tensor], Tensor]]:
    if pieces.erase:
        yield v2.RandomErasing(pieces.erase, value=[round(255 * part) for part in preprocessing.border])


Colour = tuple[int, ...]
# What each does, with the colour of what lies outside of the image.
POLICIES: dict[str, Callable[[Colour], Callable[[Image.Image], Image.Image]]] = {
    # Cubuk et al. 2020, arXiv:1909.13719, as timm's recipes have it
    "randaugment": lambda colour: rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": colour}),
    # Müller & Hutter 2021, arXiv:2103.10158
    "trivial": lambda colour: v2.TrivialAugmentWide(fill=list(colour)),
    # Hendrycks et al. 2020, arXiv:1912.02781, without its loss on three views
    "augmix": lambda colour: augment_and_mix_transform("augmix-m3-w3", {"img_mean": colour}),
}


def picture_side(preprocessing: Preprocessing) -> int:
    """Return the pixels of the shorter side from which augmented views are cut: 1.25 times what the plain view shows.

    Random crops of half the image or more are then enlarged little or not at all.
    """
    return math.ceil(1.25 * max(preprocessing.image_size) / min(preprocessing.crop_pct, 1.0))


def source_of(image: Image.Image | Stack, side: int) -> Image.Image | Stack:
    """Return what augmented views are cut from: an image whose shorter side has at most `side` pixels.

    As `smaller` makes it, to two levels of 255 (a few where it averages over blocks, whose last is not whole), but by
    torch: with AVX2 in a quarter of the time.
    """
    width, height = size_within(image.size, side)
    if isinstance(image, Stack) or (width, height) == image.size:
        return smaller(image, side)
    factors = int(image.width / width / GAP) or 1, int(image.height / height / GAP) or 1
    pixels = torch.from_numpy(np.array(image.reduce(factors) if max(factors) > 1 else image))  # (H, W, C)
    resized = interpolate(pixels.permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True)
    return Image.frombytes(image.mode, (width, height), resized[0].permute(1, 2, 0).numpy().tobytes())


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:  # (B, 3, H, W), of numbers from 0 to 255
    """Return float images of the backbone's channels, with its mean and deviation taken out."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, -1, 1, 1)
    pixels = images.to(torch.float32, copy=True).div_(255)
    if preprocessing.bands.count != preprocessing.channels:
        colours = torch.tensor(BRIGHTNESS, device=images.device).view(1, 3, 1, 1)
        pixels = (pixels * colours).sum(dim=1, keepdim=True)
    return pixels.sub_(mean).div_(std)  # (B, C, H, W)
