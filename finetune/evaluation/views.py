"""Views of an image over which a trained model's answers are averaged (test-time augmentation), by name."""

from __future__ import annotations

from typing import Literal, get_args

from finetune.errors import RecipeError, did_you_mean
from finetune.values import InsideGraph

Tta = Literal["none", "flip", "5crop"]
NUM_CROPS = 5  # the four corners and the middle


def check_tta(name: str) -> None:
    """See that views are known by a name.

    Raises:
        RecipeError: they are not.
    """
    if name not in get_args(Tta):
        raise RecipeError(f"tta = {name!r} is none of {', '.join(get_args(Tta))}.{did_you_mean(name, get_args(Tta))}")


def check_cut(tta: Tta, *, crop_mode: str, inside: InsideGraph = "none") -> None:
    """See that a model can be shown views, by how its images are cut and what of that its file does inside.

    Raises:
        RecipeError: no corners can be cut out of its images.
    """
    if tta == "5crop" and crop_mode == "border":
        raise RecipeError(
            "this model sees whole images on a border (fit = pad), of which 5crop would cut parts off",
            hint="Use --tta flip, or leave --tta away.",
        )
    if tta == "5crop" and inside == "full":
        raise RecipeError(
            "this file resizes and cuts images itself (--with-preprocessing full): no corners can be given to it",
            hint="Use --tta flip, or name the run or its plain ONNX file.",
        )
