"""Images of any number of channels, each with all of its bits: what a file is with `data.depth = "full"`.

A channel is a Pillow image of floats, so that pictures' functions can cut and scale each channel by itself.
Letters: H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.images.levels import Range, scaled


@dataclass(frozen=True, slots=True)
class Stack:
    """Channels of one size in Pillow's mode F, from 0 (black) to 255 (white), not rounded."""

    channels: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.channels[0].size

    def numbers(self) -> NDArray[np.float32]:
        """Return the numbers of all channels (H, W, C)."""
        return np.stack([np.asarray(channel) for channel in self.channels], axis=-1)

    def mean(self) -> Image.Image:
        """Return the mean of all channels as a grey picture."""
        return Image.fromarray(self.numbers().mean(axis=-1).round().clip(0, 255).astype(np.uint8))

    def picture(self) -> Image.Image:
        """Return what a person is shown: the first three channels as red, green and blue, or the first as grey."""
        return picture_of(self.numbers())


def stack_of(array: NDArray[Any], between: Range) -> Stack:
    """Return an array (H, W, C) as a stack, scaled from a range of black and white and clipped to it."""
    channels = (scaled(array[:, :, place].astype(np.float64), between) for place in range(array.shape[2]))
    return Stack(tuple(Image.fromarray(channel.astype(np.float32)) for channel in channels))


def stack_from(numbers: NDArray[np.float32]) -> Stack:
    """Return the stack with these numbers (H, W, C)."""
    return Stack(tuple(Image.fromarray(np.ascontiguousarray(numbers[:, :, c])) for c in range(numbers.shape[2])))


def picture_of(numbers: NDArray[Any]) -> Image.Image:
    """Return numbers from 0 to 255 (H, W, C) as a picture in RGB; see `Stack.picture`."""
    levels = numbers.round().clip(0, 255).astype(np.uint8)
    shown = levels[:, :, :3] if levels.shape[2] >= 3 else levels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
