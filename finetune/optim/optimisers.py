"""Optimisers over layer groups: every trained parameter in one group, with its own learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from finetune.types import FreezePlan, LayerGroup


def parameter_groups(
    model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the optimiser's groups: for each trained layer group one with weight decay and one without.

    Layer group g trains at `lr * plan[g].lr_scale`. Norms, biases and what the network names in
    `no_weight_decay()` are not decayed.
    """
    named = dict(model.named_parameters())
    spared = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    optimiser_groups = []
    for group in groups:
        scale = plan[group.name].lr_scale
        for is_decayed in (True, False) if not plan[group.name].is_frozen else ():
            chosen = [n for n in group.parameters if (named[n].ndim > 1 and n not in spared) is is_decayed]
            if chosen:
                optimiser_groups.append(
                    {
                        "params": [named[name] for name in chosen],
                        "lr": lr * scale,
                        "peak_lr": lr * scale,
                        "weight_decay": weight_decay if is_decayed else 0.0,
                    }
                )
    return optimiser_groups


def build(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name over parameter groups; sgd is Nesterov with momentum 0.9."""
    optimiser: torch.optim.Optimizer = create_optimizer_v2(groups, opt=name, lr=groups[0]["lr"], momentum=0.9)
    return optimiser
