"""A linear classifier on an inner layer group: what plain timm cannot express.

Letters: B batch, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.backbone.trace import pooled, position_dims, prefix, trace
from finetune.errors import RecipeError, did_you_mean
from finetune.types import LayerGroup


class StagedClassifier(nn.Module):
    """The layer groups of a network up to one of them, an average over positions, a linear head.

    Later layer groups are not computed, nor kept. State-dict keys: `trunk.<timm's key>`, `head.*`.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[LayerGroup], *, at: str, num_classes: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        traced = trace(model, groups, image_size=image_size)
        self.at = at
        self.num_classes = num_classes
        self.trunk = prefix(traced, [at])
        device = next(model.parameters()).device
        with torch.no_grad():
            output = self.trunk(torch.zeros(2, 3, *image_size, device=device))[0]
        self.positions = position_dims(output.ndim, is_channels_last=at in traced.channels_last)
        width = pooled(output, is_channels_last=at in traced.channels_last).shape[1]
        self.head = nn.Linear(width, num_classes, device=device)

    def features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        """Yield the pooled features of the layer group, (B, D)."""
        output: Tensor = self.trunk(images)[0]
        return output.mean(dim=self.positions) if self.positions else output

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        logits: Tensor = self.head(self.features(images))
        return logits  # (B, K)

    def get_classifier(self) -> nn.Module:
        return self.head

    def layer_groups(self, groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
        """Yield the layer groups that this classifier holds, under its own parameter names."""
        own = dict(self.named_parameters())
        kept = []
        for group in groups:
            names = tuple(f"trunk.{name}" for name in group.parameters if f"trunk.{name}" in own)
            if names and not group.is_head:
                kept.append(LayerGroup(group.name, names, sum(own[name].numel() for name in names)))
        head = tuple(name for name in own if name.startswith("head."))
        kept.append(LayerGroup("head", head, sum(own[name].numel() for name in head), is_head=True))
        return tuple(kept)


def check_stage(at: str, groups: Sequence[LayerGroup]) -> str:
    """Yield `at` when it names a layer group of the backbone.

    Raises:
        RecipeError: it does not.
    """
    names = [group.name for group in groups if not group.is_head]
    if at not in names:
        raise RecipeError(
            f"strategy.probe_at = {at!r}: no such layer group.{did_you_mean(at, names)}",
            hint=f"This backbone has {', '.join(names)}.",
        )
    return at
