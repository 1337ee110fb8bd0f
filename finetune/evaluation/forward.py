"""Running a model over batches without training it. Letters: B batch, N images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from finetune import ranks

Autocast = Callable[[], AbstractContextManager[object]]


def collect_logits(
    model: nn.Module, batches: Iterable[tuple[Any, Tensor]], *, autocast: Autocast = nullcontext
) -> tuple[Tensor, Tensor]:
    """Return (logits (N, K) float32, class indices (N,)) on the CPU; the model is left in eval mode.

    Of several processes of a run the first has those of all (see `ranks.joined_rows`).
    """
    model.eval()
    rows = []
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast():
                out = model(inputs)  # (B, K)
            rows.append((out.float().cpu(), labels.cpu()))
    logits, targets = ranks.joined_rows(rows)
    return logits, targets


class Mirrored(nn.Module):
    """A model that answers with the mean of its logits (B, K) on images (B, C, H, W) and on their mirror images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of both answers."""
        mean: Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return mean
