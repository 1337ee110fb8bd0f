"""How fast a model's answers get worse on noisy, blurred or weathered images: ImageNet-C's protocol.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261, by the package imagecorruptions. As there, what is corrupted is
the view of evaluation, cut out and in 8 bits. Letters: H W pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bands import Bands
from finetune.errors import RecipeError
from finetune.evaluation.views import Tta
from finetune.randomness import derive, forked

PACKAGE = "imagecorruptions"
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
KINDS = tuple(kind for kinds in FAMILIES.values() for kind in kinds)
OWN_SEED = ("glass_blur", "impulse_noise")  # these draw from a generator of their own
MOST_SEVERE = 5
FEWEST_PIXELS = 32  # on a side: the package takes no smaller images
Pixels = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True, slots=True)
class UnderCorruption:
    """A task's first metric on images as they are, and corrupted in each kind at each severity, the mildest first."""

    measure: str
    clean: float
    severities: tuple[int, ...]
    by_kind: Mapping[str, tuple[float, ...]]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean over the kinds at each severity."""
        return tuple(fmean(values) for values in zip(*self.by_kind.values(), strict=True))


def check_severities(severities: Sequence[int], *, tta: Tta = "none") -> tuple[int, ...]:
    """Return severities in order, once each.

    Raises:
        RecipeError: one is not a severity, answers are averaged over views too, or the package is missing.
    """
    strange = [severity for severity in severities if severity not in range(1, MOST_SEVERE + 1)]
    if strange:
        raise RecipeError(
            f"severity {strange[0]} is not one of 1 to {MOST_SEVERE}", hint="Name some of them: --severities 1,2,3."
        )
    if severities and tta != "none":
        raise RecipeError("--corrupt measures single images, but --tta a mean over views", hint="Leave one out.")
    if severities:
        _package()
    return tuple(sorted(set(severities)))


def check_corruptible(bands: Bands, image_size: tuple[int, int]) -> None:
    """Check that a model's view of an image can be corrupted.

    Raises:
        RecipeError: it is not red, green and blue of 8 bits, or has too few pixels.
    """
    if not bands.are_colours:
        bits = " with all bits" if bands.is_full else ""
        raise RecipeError(
            f"this model takes {bands.count} channels{bits}, but corruptions are defined for photographs: red, green"
            " and blue with 8 bits",
            hint="Leave out --corrupt.",
        )
    if min(image_size) < FEWEST_PIXELS:
        raise RecipeError(
            f"this model sees {image_size[0]} × {image_size[1]} pixels, and corruptions are made for"
            f" {FEWEST_PIXELS} × {FEWEST_PIXELS} or more",
            hint="Leave out --corrupt.",
        )


def corrupted(pixels: Pixels, kind: str, severity: int) -> Pixels:
    """Return an image corrupted, the same way each time: what is drawn derives from its pixels."""
    digest = blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    seed = derive(severity, kind, digest)
    own = {"seed": seed % 2**32} if kind in OWN_SEED else {}
    with forked(seed), contextlib.redirect_stdout(io.StringIO()):  # some kinds print what they fall back on
        found: Pixels = _package().corrupt(pixels, severity=severity, corruption_name=kind, **own)
    return found


def _package() -> Any:
    try:
        return import_module(PACKAGE)
    except ImportError as error:
        if error.name == PACKAGE:
            raise RecipeError(
                f"--corrupt needs {PACKAGE}, which is not installed", hint='pip install "finetune[corrupt]"'
            ) from None
        raise RecipeError(f"--corrupt needs {PACKAGE}, which cannot be imported: {error}") from error
