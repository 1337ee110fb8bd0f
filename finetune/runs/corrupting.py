"""Asking a model about corrupted images, decoding each once. Letters: B batch, H W pixels, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.evaluation.corruptions import KINDS, Pixels, UnderCorruption, corrupted
from finetune.process import num_cores
from finetune.tasks import Task
from finetune.train.objectives import objective_of
from finetune.types import Event, OnEvent


@dataclass(frozen=True, slots=True)
class OfPixels:
    """How a model is asked about altered images: the view of a file that it sees, in 8 bits (H, W, 3), and its outputs
    (B, K) for a batch of such pixels."""

    show: Callable[[Path], Pixels]
    answer: Callable[[Sequence[Pixels]], Tensor]


def under_corruption(
    model: OfPixels,
    files: Sequence[Path],
    targets: Tensor,
    severities: tuple[int, ...],
    *,
    task: Task,
    clean: float,
    batch_size: int,
    on_event: OnEvent,
) -> UnderCorruption:
    """Return a model's score on files under each kind of corruption at each severity."""
    found: dict[tuple[str, int], list[Tensor]] = {(kind, severity): [] for kind in KINDS for severity in severities}
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    done, total = 0, len(files) * len(found)
    for images in read_ahead(model.show, batches, num_threads=num_cores(most=MOST_THREADS)):
        for (kind, severity), logits in found.items():
            logits.append(model.answer([corrupted(image, kind, severity) for image in images]))
            done += len(images)
            on_event(Event.progress("corrupted images", done, total))
    judge = objective_of(task)
    by_kind = {
        kind: tuple(judge.score(torch.cat(found[kind, severity]), targets) for severity in severities) for kind in KINDS
    }
    return UnderCorruption(judge.name, clean, severities, by_kind)
