"""Running a model over batches without training it. Letters: B batch, N images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from finetune import ranks
from finetune.evaluation.views import NUM_CROPS, Tta
from finetune.types import Event, OnEvent

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


def watched(
    batches: Iterable[tuple[Any, Tensor]], what: str, num_images: int, *, on_event: OnEvent
) -> Iterator[tuple[Any, Tensor]]:
    """Yield batches, and report after each how many of the images of a task are done."""
    done = 0
    for inputs, labels in batches:
        yield inputs, labels
        done += len(labels)
        on_event(Event.progress(what, done, num_images))


def over_views(model: nn.Module, tta: Tta) -> nn.Module:
    """Return a model that answers with the mean of its logits (B, K) over the views that a name stands for.

    For five crops it takes images with all of them stacked vertically: (B, C, 5 H, W).
    """
    return model if tta == "none" else _OverViews(model, tta)


class _OverViews(nn.Module):
    def __init__(self, model: nn.Module, tta: Tta) -> None:
        super().__init__()
        self.model, self.tta = model, tta

    def forward(self, images: Tensor) -> Tensor:
        views = (images, images.flip(-1)) if self.tta == "flip" else images.chunk(NUM_CROPS, dim=2)
        mean: Tensor = sum(self.model(view.contiguous()) for view in views) / len(views)
        return mean
