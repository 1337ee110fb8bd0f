"""How far an image may vary in training, in one table of levels; a piece that the recipe names goes before its level.

To add a level: a row in `LEVELS`, its name in `values.AugmentLevel`, a line in docs/training.md. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from finetune.sections import AugmentSection
from finetune.values import AUTO_LEVEL


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is drawn for each view: shares and strengths between 0 and 1, `rotate` in degrees to either side.

    `policy` is a published recipe of drawn operations, "none" where there is none.
    """

    min_crop: float = 1.0
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    color_jitter: float = 0.0
    hue: float = 0.0
    rotate: float = 0.0
    erase: float = 0.0
    policy: str = "none"


def pieces_of(augment: AugmentSection) -> Pieces | None:
    """Return what a recipe varies, each piece settled; None where nothing is."""
    level = AUTO_LEVEL if augment.level == "auto" else augment.level
    if level == "none":
        return None
    asked: dict[str, Any] = {field.name: getattr(augment, field.name) for field in fields(Pieces)}
    return replace(LEVELS[level], **{name: value for name, value in asked.items() if value != "auto"})


MEDIUM = Pieces(min_crop=0.35, horizontal_flip=0.5)
LEVELS: dict[str, Pieces] = {
    "light": Pieces(min_crop=0.65, horizontal_flip=0.5),
    "medium": MEDIUM,
    "basic": MEDIUM,  # as it was called before
    "heavy": Pieces(min_crop=0.25, horizontal_flip=0.5, color_jitter=0.3, erase=0.25, policy="trivial"),
}
