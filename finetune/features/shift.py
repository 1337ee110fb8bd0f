"""How far the inputs of batch norm are from the statistics that it has stored.

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
from finetune.randomness import resampled
from finetune.types import Interval, LayerGroup

RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Shift:
    """The mean shift over the layer groups with batch norm, and that of each, in stored deviations."""

    mean: Interval
    groups: dict[str, float] = field(default_factory=dict)


def norm_shift(
    model: nn.Module, groups: Sequence[LayerGroup], images: Tensor, units: Sequence[int] | None = None
) -> Shift | None:
    """Return how far images (B, 3, H, W) are from what a network has seen; None without batch norm.

    Of a channel: |mean over these images - stored mean| / stored deviation, less what so few images stray by
    chance. Of a layer group: the mean over the channels of its norms. The interval is that of other
    images of the same kind: a bootstrap. Of images that share one of the `units` (B,), which are copies or of one
    group, neither takes each for itself.
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
    drawn = torch.from_numpy(resampled(len(images), units, draws=RESAMPLES, seed=0))
    weights = torch.cat([torch.ones(1, len(images)), drawn.float()])
    shares = weights / weights.sum(dim=1, keepdim=True)  # (1 + R, B)
    strayed = torch.tensor([[1.0], *[[2.0]] * RESAMPLES])  # a resample strays from a sample that strays
    by_group: dict[str, list[Tensor]] = {}
    for module, means in seen.items():
        stored: Any = module
        precision = 1 / (stored.running_var + stored.eps).float().cpu()
        chance = _variance_of_mean(means, units)
        square = (shares @ means - stored.running_mean.float().cpu()).square() - strayed * chance
        distance = (square * precision).clamp_min(0).sqrt()  # (1 + R, C)
        by_group.setdefault(norms[module], []).append(distance.mean(dim=1))
    by_name = {group.name: torch.stack(by_group[group.name]).mean(dim=0) for group in groups if group.name in by_group}
    mean = torch.stack(list(by_name.values())).mean(dim=0)
    low, high = np.quantile(mean[1:].numpy(), [0.025, 0.975])
    value = float(mean[0])
    interval = Interval(value, min(value, float(low)), max(value, float(high)))
    return Shift(interval, {name: float(values[0]) for name, values in by_name.items()})


def _variance_of_mean(values: Tensor, units: Sequence[int] | None) -> Tensor:
    """Return the variance (C,) of the mean over images (B, C); those of one unit are not independent."""
    numbers = torch.arange(len(values)) if units is None else torch.unique(torch.tensor(units), return_inverse=True)[1]
    num_units = int(numbers.max()) + 1
    rest = values - values.mean(dim=0)
    sums = torch.zeros(num_units, values.shape[1]).index_add_(0, numbers, rest)
    return sums.square().sum(dim=0) / len(values) ** 2 * num_units / max(1, num_units - 1)


def _means(model: nn.Module, norms: Sequence[nn.Module], images: Tensor) -> dict[nn.Module, Tensor]:
    """Return the mean input (B, C) of every channel of some norms, for each image."""
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
