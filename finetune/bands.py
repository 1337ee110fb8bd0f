"""In what images are decoded: how many channels, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_CHANNELS = 64  # of an image
PICTURE_CHANNELS = (1, 3, 4)
Depth = Literal[8, "full"]  # bits that are kept of each channel, or all


@dataclass(frozen=True, slots=True)
class Bands:
    """In how many channels images are decoded, and how much of each is kept: 8 bits, or all that a file has."""

    count: int = 3
    depth: Depth = 8

    @property
    def is_full(self) -> bool:
        return self.depth == "full"

    @property
    def are_colours(self) -> bool:
        """Whether they are red, green and blue as pictures have them."""
        return self == COLOURS


COLOURS = Bands()


def bands_of(channels: int, depth: Depth | Literal["auto"] = "auto") -> Bands:
    """Return in what images are decoded for a network that sees so many channels: brightness is taken from colours.

    "auto" keeps all of each channel where there are other numbers of them than pictures have.
    """
    if depth == "full" or (depth == "auto" and channels not in PICTURE_CHANNELS):
        return Bands(channels, "full")
    return Bands(max(3, channels))
