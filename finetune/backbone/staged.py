"""A linear classifier on inner layer groups, one or several: what plain timm cannot express.

Letters: B batch, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.backbone.blank import channels_of, set_channels
from finetune.backbone.groups import group_of
from finetune.backbone.trace import prefix, trace
from finetune.errors import RecipeError, did_you_mean
from finetune.settings import ALL_STAGES, JOIN
from finetune.types import LayerGroup


class StagedClassifier(nn.Module):
    """The layer groups of a network up to one of them, an average over positions, a linear head.

    Of several layer groups the averages stand side by side, in the order of the network; `widths` tells
    how many features each gives. Later layer groups are not computed, nor kept.
    State-dict keys: `trunk.<timm's key>`, `head.*`.
    Source: Evci et al. 2022, Head2Toe, arXiv:2201.03529 (several).
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[LayerGroup], *, at: str, num_classes: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        traced = trace(model, groups, image_size=image_size)
        names = [name for name in stages(at, groups) if at != ALL_STAGES or name in traced.ends]
        self.at = JOIN.join(names)
        self.num_classes = num_classes
        set_channels(self, channels_of(model))
        self.trunk = prefix(traced, names, is_pooled=True)
        self.widths = [traced.widths[name] for name in names]
        self.head = nn.Linear(sum(self.widths), num_classes, device=next(model.parameters()).device)

    def features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        """Return the pooled features of the layer groups, (B, D)."""
        pooled = self.trunk(images)
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        logits: Tensor = self.head(self.features(images))
        return logits  # (B, K)

    def get_classifier(self) -> nn.Module:
        return self.head

    def layer_groups(self, groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
        """Return the layer groups that this classifier holds, under its own parameter names."""
        own = dict(self.named_parameters())
        kept = []
        for group in groups:
            names = tuple(f"trunk.{name}" for name in group.parameters if f"trunk.{name}" in own)
            if names and not group.is_head:
                kept.append(group_of(self, group.name, names))
        head = tuple(name for name in own if name.startswith("head."))
        kept.append(group_of(self, "head", head, is_head=True))
        return tuple(kept)


def stages(at: str, groups: Sequence[LayerGroup]) -> list[str]:
    """Return the layer groups meant by "NAME", "NAME+NAME" or "all", in the order of the network.

    Raises:
        RecipeError: there is no such layer group.
    """
    names = [group.name for group in groups if not group.is_head]
    wanted = names if at == ALL_STAGES else at.split(JOIN)
    for name in wanted:
        if name not in names:
            raise RecipeError(
                f"strategy.probe_at = {name!r}: no such layer group.{did_you_mean(name, names)}",
                hint=f"This backbone has {', '.join(names)}. Several: {JOIN.join(names[-2:])}; all: {ALL_STAGES}.",
            )
    return [name for name in names if name in wanted]


def check_stage(at: str, groups: Sequence[LayerGroup]) -> str:
    """Return `at` with the names of its layer groups in order.

    Raises:
        RecipeError: there is no such layer group.
    """
    return JOIN.join(stages(at, groups))
