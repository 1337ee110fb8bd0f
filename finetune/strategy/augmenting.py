"""Why a recipe that leaves the level of augmentation open gets the usual one, whatever its strategy and its data.

What was measured (docs/log.md, 2026-11-29): another level becomes the rule of a strategy when it loses on no set.
"""

from __future__ import annotations

from finetune.values import AUTO_LEVEL

MEASURED = {
    "linear-probe": "with 10 images a class none, light and heavy were no better",
    "head-only": "with 10 images a class none, light and heavy were no better",
    "top-k": "with 10 images a class none, light and heavy were no better",
    "full": "with 10 images a class heavy won 3 points on textures and lost 1 on ultrasound",
}


def why_usual(strategy: str) -> str:
    """Return the sentence that a plan says of the level that is taken."""
    reason = MEASURED.get(strategy, f"no other level was measured with {strategy}")
    return f"augment.level auto: {AUTO_LEVEL}; {reason}"
