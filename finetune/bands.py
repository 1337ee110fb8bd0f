"""How images are decoded: into how many channels, and how much is kept of each."""

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
    """Return how images are decoded for a network with this number of channels: brightness comes from colours.

    "auto" keeps all of each channel if their number is not one that pictures have.
    """
    if depth == "full" or (depth == "auto" and channels not in PICTURE_CHANNELS):
        return Bands(channels, "full")
    return Bands(max(3, channels))
