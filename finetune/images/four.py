"""Images of four channels, none of them transparency: each is scaled by itself.

Of Pillow's modes of four channels, CMYK is the one in which they are.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from finetune.images.levels import deep_colour
from finetune.wording import counted

DEEP = "four channels of 16 bits: save 8 bits of each, or keep all by data.depth = 'full'"
MODES = ("RGBA", "CMYK", "RGBX")  # Pillow's, of four channels that mean what the file says


def take_fourth(image: Any, num_bands: int) -> None:
    """Have Pillow keep the fourth of `num_bands` of an image that is not loaded yet, which it would leave out."""
    if num_bands == 4 and image.mode == "RGB":
        image._mode = "RGBX"


def why_not_four(image: Any, num_bands: int) -> str:
    """Return why an image that is not loaded yet does not have four channels of 8 bits; empty if it does.

    `num_bands` is what a TIFF claims: whatever its fourth is declared to be, it is a channel here.
    """
    take_fourth(image, num_bands)
    if image.mode not in MODES:
        return f"{counted(len(image.getbands()), 'channel')} ({image.mode}), and data.channels is 4"
    return DEEP if deep_colour(image) else ""


def of_four(image: Image.Image) -> Image.Image:
    """Return an image of four channels in mode CMYK, whatever they are."""
    return Image.merge("CMYK", image.split())
