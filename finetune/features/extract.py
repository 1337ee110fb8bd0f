"""Pooled features of layer groups for every image, in one pass.

Letters: B batch, N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbone.trace import Traced, pooled, prefix

Batches = Iterable[tuple[Any, Tensor]]
Tap = Callable[[Any], tuple[Tensor, ...]]


def extract(
    tap: Tap, batches: Batches, *, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Yield the tapped features (N, D), one tensor a tap, and the class indices (N,), on the CPU."""
    rows: list[tuple[Tensor, ...]] = []
    targets = []
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast():
                features = tap(inputs)  # each (B, D)
            rows.append(tuple(feature.float().cpu() for feature in features))
            targets.append(labels.cpu())
    return tuple(torch.cat(column) for column in zip(*rows, strict=True)), torch.cat(targets)


def taps(traced: Traced, groups: Sequence[str]) -> Tap:
    """Yield a function of images that gives the pooled output of several layer groups in one pass."""
    part = prefix(traced, groups)

    def tap(images: Tensor) -> tuple[Tensor, ...]:
        outputs = part.eval()(images)
        return tuple(
            pooled(output, is_channels_last=group in traced.channels_last)
            for group, output in zip(groups, outputs, strict=True)
        )

    return tap


def before_head(model: nn.Module, head: nn.Module) -> Tap:
    """Yield a function of a model's inputs that gives what reaches the head, traced or not, tail or whole."""

    def tap(inputs: Any) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            model.eval()
            model(inputs)
        finally:
            handle.remove()
        return (seen[-1].flatten(1),)

    return tap
