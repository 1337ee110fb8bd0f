"""Views of an image over which a trained model's answers are averaged (test-time augmentation), by name."""

from __future__ import annotations

from typing import Literal, get_args

from finetune.errors import RecipeError, did_you_mean

Tta = Literal["none", "flip"]  # the image alone; with its mirror image, the mean of both logits


def check_tta(name: str) -> None:
    """See that views are known by a name.

    Raises:
        RecipeError: they are not.
    """
    if name not in get_args(Tta):
        raise RecipeError(f"tta = {name!r} is none of {', '.join(get_args(Tta))}.{did_you_mean(name, get_args(Tta))}")
