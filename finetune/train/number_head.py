"""The head of a network that estimates a number: trained on deviations from the mean, delivered as the number."""

from __future__ import annotations

import torch
from torch import nn

from finetune.backbone.heads import linear_head
from finetune.errors import BackboneError, DataError
from finetune.tasks import Quantity, Scale
from finetune.types import Manifest


def scale_of(manifest: Manifest) -> Scale | None:
    """Return the scale of the numbers of train; None where images have classes.

    Raises:
        DataError: all of them are equal.
    """
    if manifest.task != "regress":
        return None
    numbers = torch.tensor(
        [sample.target.value for sample in manifest.split("train") if isinstance(sample.target, Quantity)],
        dtype=torch.float64,
    )
    mean, deviation = float(numbers.mean()), float(numbers.std(correction=0))
    if deviation <= 1e-9 * abs(mean):
        raise DataError(f"every image of train has the number {mean:g}", hint="There is nothing to learn.")
    return Scale(mean, deviation)


def check_number_head(model: nn.Module, label: str) -> None:
    """Check that a scale can be folded into the head of a network.

    Raises:
        BackboneError: its head is not one linear layer.
    """
    if linear_head(model) is None:
        raise BackboneError(
            f"the head of {label} is not one linear layer: it cannot estimate a number",
            hint="Choose another --backbone.",
        )


def fold_scale(model: nn.Module, scale: Scale | None) -> None:
    """Fold a scale into the head: from then on the output is the number."""
    head = linear_head(model)
    if scale is None or head is None:
        return
    with torch.no_grad():
        head.weight.mul_(scale.deviation)
        head.bias.mul_(scale.deviation).add_(scale.mean)
