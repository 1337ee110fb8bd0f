"""One step of training: a batch, its gradient, and the optimiser. Letters: B batch, K classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.device import Accelerator
from finetune.optim.losses import Criterion
from finetune.train.outputs import aux_weight, loss_of
from finetune.train.settings import FitSettings


@dataclass(slots=True)
class Step:
    """What a step of a phase needs beside its batch."""

    model: nn.Module
    optimiser: Any
    settings: FitSettings
    accelerator: Accelerator

    def take(self, run: nn.Module, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on the mean loss of a batch, its gradient summed over micro-batches.

        Returns loss and hits, both (), on the device: nothing here waits for it.
        """
        loss, hits = self._gradient(run, inputs, targets)
        clip = self.settings.optim.clip
        if clip != "none":
            self.accelerator.clip_grad_norm_(self.trained, clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss, hits

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that the optimiser moves."""
        return [weight for group in self.optimiser.param_groups for weight in group["params"]]

    def _gradient(self, run: nn.Module, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, hits = [], []
        for part, wanted in _micro_batches(inputs, targets, self.settings.micro_batch or len(targets)):
            with self.accelerator.autocast():
                output = run(part)
            against = partial(_against, self.settings.criterion, wanted)
            loss, logits = loss_of(output, against, aux_weight=aux_weight(self.model))
            share = len(wanted) / len(targets)
            self.accelerator.backward(loss * share if share < 1 else loss)
            losses.append(loss.detach() * share)
            hits.append((logits.detach().argmax(dim=1) == wanted).sum())
        return torch.stack(losses).sum(), torch.stack(hits).sum()


def _against(criterion: Criterion, targets: Tensor, logits: Tensor) -> Tensor:
    return criterion(logits, targets)


def _micro_batches(inputs: Any, targets: Tensor, size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield evenly sized parts of a batch of at most `size` images; inputs are a tensor or a tuple of them."""
    count = -(-len(targets) // size)
    if count == 1:
        yield inputs, targets
        return
    columns = inputs if isinstance(inputs, tuple) else (inputs,)
    for *parts, wanted in zip(*(torch.tensor_split(column, count) for column in (*columns, targets)), strict=True):
        yield tuple(parts) if isinstance(inputs, tuple) else parts[0], wanted
