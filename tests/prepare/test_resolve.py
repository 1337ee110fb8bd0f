"""What is left open is settled by the strategy, and what is named stays."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import skeleton_of
from finetune.prepare.resolve import resolve_numbers


@pytest.mark.parametrize(
    ("settings", "smoothing"),
    [
        ({"top_k": 2}, 0.1),
        ({"top_k": 1}, 0.0),
        ({"strategy": "top-k"}, 0.0),
        ({"strategy": "full"}, 0.0),
        ({"strategy": "head-only"}, 0.0),
        ({"top_k": 2, "loss.label_smoothing": 0.0}, 0.0),
        ({"strategy": "full", "loss.label_smoothing": 0.2}, 0.2),
        ({"top_k": 2, "loss.name": "focal"}, 0.0),
        ({"top_k": 2, "task": "multilabel"}, 0.0),
    ],
)
def test_auto_smooths_labels_where_top_k_trains_two_layer_groups(settings: dict[str, Any], smoothing: float) -> None:
    asked = recipe_of(settings={"backbone": "test_resnet", "pretrained": False, **settings})
    settled = resolve_numbers(asked, skeleton_of(asked, num_classes=3), None, num_train=40)
    assert settled.loss.label_smoothing == settled.loss.smoothing == smoothing


@pytest.mark.parametrize("loss", ["nll", "focal", "asymmetric"])
def test_a_settled_recipe_is_taken_again_whatever_its_loss_is(loss: str) -> None:
    """What "auto" has settled to nothing must not be held against a loss that has no use for it."""
    task = "multilabel" if loss == "asymmetric" else "classify"
    asked = recipe_of(
        settings={"backbone": "test_resnet", "pretrained": False, "top_k": 2, "task": task, "loss.name": loss}
    )
    settled = resolve_numbers(asked, skeleton_of(asked, num_classes=3), None, num_train=40)
    assert recipe_of(settled) == settled
