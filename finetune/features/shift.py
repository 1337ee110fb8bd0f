"""How far the inputs of batch norm lie from the statistics that it has stored.

Letters: B batch, C channels, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.backbone.freeze import modules_by_group
from finetune.types import Interval, LayerGroup

RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Shift:
    """The mean shift of all layer groups with batch norm, and of each: in stored deviations."""

    mean: Interval
    groups: dict[str, float] = field(default_factory=dict)


def norm_shift(model: nn.Module, groups: Sequence[LayerGroup], images: Tensor) -> Shift | None:
    """Yield how far some images (B, 3, H, W) lie from what a network has seen; None without batch norm.

    Of a channel: |mean over these images - stored mean| / stored deviation, less what so few images stray by
    chance. Of a layer group: the mean over the channels of its norms. The interval is that of other
    images of the same kind: a bootstrap.
    """
    places = modules_by_group(model, groups)
    heads = {group.name for group in groups if group.is_head}
    norms = {
        module: group
        for path, module in model.named_modules()
        if getattr(module, "running_mean", None) is not None and (group := places[path]) and group not in heads
    }
    if not norms:
        return None
    seen = _means(model, list(norms), images)
    drawn = np.random.default_rng(0).integers(0, len(images), (RESAMPLES, len(images)))
    weights = torch.stack([torch.bincount(torch.from_numpy(row), minlength=len(images)) for row in drawn])
    shares = torch.cat([torch.ones(1, len(images)), weights.float()]) / len(images)  # (1 + R, B)
    strayed = torch.tensor([[1.0], *[[2.0]] * RESAMPLES])  # a resample strays from a sample that strays
    by_group: dict[str, list[Tensor]] = {}
    for module, means in seen.items():
        stored: Any = module
        precision = 1 / (stored.running_var + stored.eps).float().cpu()
        chance = means.var(dim=0, correction=0) / max(1, len(images) - 1)  # of the mean over the images
        square = (shares @ means - stored.running_mean.float().cpu()).square() - strayed * chance
        distance = (square * precision).clamp_min(0).sqrt()  # (1 + R, C)
        by_group.setdefault(norms[module], []).append(distance.mean(dim=1))
    found = {group.name: torch.stack(by_group[group.name]).mean(dim=0) for group in groups if group.name in by_group}
    mean = torch.stack(list(found.values())).mean(dim=0)
    low, high = np.quantile(mean[1:].numpy(), [0.025, 0.975])
    value = float(mean[0])
    interval = Interval(value, min(value, float(low)), max(value, float(high)))
    return Shift(interval, {name: float(values[0]) for name, values in found.items()})


def _means(model: nn.Module, norms: Sequence[nn.Module], images: Tensor) -> dict[nn.Module, Tensor]:
    """Yield the mean input (B, C) of every channel of some norms, for each image."""
    seen: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, inputs: Any) -> None:
        values: Tensor = inputs[0].detach().float()
        if values.shape[0] == len(images):
            seen[module] = values.flatten(2).mean(dim=2).cpu() if values.ndim > 2 else values.cpu()

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return seen
