"""How far the inputs of batch norm lie from the statistics that it has stored.

Letters: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbone.freeze import modules_by_group
from finetune.types import LayerGroup


def norm_shift(model: nn.Module, groups: Sequence[LayerGroup], images: Tensor) -> dict[str, float]:
    """Yield for every layer group with batch norm the mean distance over its channels, in stored deviations.

    `images` are (B, 3, H, W). Empty for a network without batch norm. Of a channel: |mean of these
    images - stored mean| / stored deviation.
    """
    places = modules_by_group(model, groups)
    found: dict[str, list[float]] = {}

    def look(module: nn.Module, inputs: Any, *, group: str) -> None:
        values: Tensor = inputs[0].detach().float()
        over = [dim for dim in range(values.ndim) if dim != 1]
        stored: Any = module
        distance = (values.mean(dim=over) - stored.running_mean).abs() * torch.rsqrt(stored.running_var + stored.eps)
        found.setdefault(group, []).append(float(distance.mean()))

    def looking(group: str) -> Any:
        return lambda module, inputs: look(module, inputs, group=group)

    handles = [
        module.register_forward_pre_hook(looking(group))
        for path, module in model.named_modules()
        if getattr(module, "running_mean", None) is not None and (group := places[path]) is not None
    ]
    if not handles:
        return {}
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {group.name: sum(v) / len(v) for group in groups if (v := found.get(group.name))}
