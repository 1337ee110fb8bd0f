"""Pooled features of layer groups for every image, in one pass.

Letters: B batch, N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.backbone.trace import Traced, prefix
from finetune.errors import BackboneError
from finetune.features.divide import Trunk

Batches = Iterable[tuple[Any, Tensor]]
Tap = Callable[[Any], tuple[Tensor, ...]]


def extract(
    tap: Tap, batches: Batches, *, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the tapped features (N, D), one tensor per tap, and the class indices (N,), on the CPU.

    Of several processes of a run the first has those of all (see `ranks.joined_rows`).
    """
    rows: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast():
                features = tap(inputs)  # each (B, D)
            rows.append((*(feature.float().cpu() for feature in features), labels.cpu()))
    *columns, targets = ranks.joined_rows(rows)
    return tuple(columns), targets


def taps(traced: Traced, groups: Sequence[str]) -> Trunk:
    """Return a trunk that gives the pooled output of several layer groups in one pass, each (B, D)."""
    return Trunk(prefix(traced, groups, is_pooled=True), [1] * len(groups))


def before_head(model: nn.Module, head: nn.Module) -> Tap:
    """Return a function of a model's inputs that returns what reaches the head; the model may be traced, or a tail.

    Raises:
        BackboneError: that cannot be told (when the function is called).
    """
    look = with_output(model, head)
    return lambda inputs: look(inputs)[:1]


def with_output(model: nn.Module, head: nn.Module) -> Tap:
    """Return a function of a model's inputs that returns what reaches the head, (B, D), and the outputs (B, K).

    Raises:
        BackboneError: what reaches the head cannot be told (when the function is called).
    """

    def look(inputs: Any) -> tuple[Tensor, ...]:
        seen: list[tuple[nn.Module, Tensor]] = []
        # A trace calls the layers of a head that is more than one, but not the head itself.
        handles = [
            part.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].detach())))
            for part in head.modules()
        ]
        try:
            model.eval()
            output = model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        whole = [reached for module, reached in seen if module is head]
        reached = whole[-1] if whole else seen[0][1] if seen else _boundary(inputs)
        return reached.flatten(1), output

    return look


def _boundary(inputs: Any) -> Tensor:
    """Return what crosses into a tail whose head is plain functions, as timm's own Linear is in a trace."""
    if isinstance(inputs, tuple) and len(inputs) == 1 and inputs[0].ndim == 2:
        boundary: Tensor = inputs[0]
        return boundary
    raise BackboneError("the input of this network's head cannot be found")
