"""The images a network takes: its data config, and whether it takes a size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.data import resolve_model_data_config
from torch import nn

from finetune.backbone.blank import USUAL, blank_images, channels_of
from finetune.backbone.layers import NETWORK_ERRORS
from finetune.errors import BackboneError
from finetune.types import Preprocessing
from finetune.wording import first_line


def check_image_size(model: nn.Module, size: tuple[int, int], label: str) -> None:
    """Run one empty image through a network, to check that it takes images of this size.

    Raises:
        BackboneError: it does not, or its patches would not cover the image.
    """
    stem = getattr(model, "patch_embed", getattr(model, "stem", None))
    patch = getattr(stem, "patch_size", None)
    if isinstance(patch, (tuple, list)) and any(side % p for side, p in zip(size, patch, strict=False)):
        near = [max(patch[0], size[0] // patch[0] * patch[0]), (size[0] // patch[0] + 1) * patch[0]]
        raise BackboneError(
            f"{label} cuts its input into patches of {patch[0]} pixels, and {size[0]} is not a multiple of that",
            hint=f"Use --image-size {near[0]} or {near[1]}.",
        )
    try:
        with torch.no_grad():
            model(blank_images(model, size))
    except NETWORK_ERRORS as error:
        raise BackboneError(
            f"{label} does not take images of {size[0]} pixels: {first_line(error)}",
            hint="Leave --image-size out for the size it was trained with, or take a larger one.",
        ) from error


def preprocessing_of(model: nn.Module, name: str, image_size: int | None) -> Preprocessing:
    """Return the preprocessing of a network's data config, at another size where one is asked for.

    Of a network that was trained on three channels, one has the means of their means and deviations, and a fourth those
    of red again and so on, as timm has its weights.

    Raises:
        BackboneError: the data config cannot be used.
    """
    try:
        config = resolve_model_data_config(model)
        height, width = (image_size, image_size) if image_size else config["input_size"][1:]
        channels = channels_of(model)
        return Preprocessing(
            image_size=(int(height), int(width)),
            mean=_of_channels(config["mean"], channels),
            std=_of_channels(config["std"], channels),
            interpolation=config["interpolation"],
            crop_pct=float(config["crop_pct"]),
            crop_mode=config["crop_mode"],
            channels=channels,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise BackboneError(f"the data config of {name} cannot be used: {error}") from error


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a number for each channel, from those of a data config.

    Raises:
        ValueError: they are of other channels.
    """
    numbers = tuple(map(float, values))
    if channels == 1 and len(numbers) == USUAL:
        return (sum(numbers) / USUAL,)
    if channels != USUAL == len(numbers):
        return tuple(numbers[place % USUAL] for place in range(channels))
    if len(numbers) != channels:
        raise ValueError(f"{len(numbers)} means or deviations of {channels} channels")
    return numbers
