"""Views of an image over which a trained model's answers are averaged (test-time augmentation), by name."""

from __future__ import annotations

from typing import Literal, get_args

from finetune.errors import RecipeError, did_you_mean
from finetune.values import InsideGraph

Tta = Literal["none", "flip", "5crop"]
NUM_CROPS = 5  # the four corners and the middle


def check_tta(name: str) -> None:
    """Check that there are views of this name.

    Raises:
        RecipeError: there are none.
    """
    if name not in get_args(Tta):
        raise RecipeError(
            f"tta = {name!r} is not one of {', '.join(get_args(Tta))}.{did_you_mean(name, get_args(Tta))}"
        )


def check_cut(tta: Tta, *, crop_mode: str, inside: InsideGraph = "none") -> None:
    """Check that a model can be shown views, from how its images are cut and what its file does itself.

    Raises:
        RecipeError: no corners can be cut out of its images.
    """
    if tta == "5crop" and crop_mode == "border":
        raise RecipeError(
            "this model sees whole images on a border (fit = pad), which 5crop would cut",
            hint="Use --tta flip, or leave out --tta.",
        )
    if tta == "5crop" and inside == "full":
        raise RecipeError(
            "this file resizes and cuts images itself (--with-preprocessing full): it cannot take corners",
            hint="Use --tta flip, or name the run or its plain ONNX file.",
        )
