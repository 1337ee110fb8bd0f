"""The outputs of a network in training mode as one loss: the only place that knows of tuples of logits.

Letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Output = Tensor | tuple[Tensor, ...]


def aux_weight(model: nn.Module) -> float | None:
    """Return the weight of each auxiliary classifier's loss; None for a network without any."""
    weight: float | None = getattr(model, "aux_weight", None)
    return weight


def loss_of(output: Output, loss: Callable[[Tensor], Tensor], *, aux_weight: float | None) -> tuple[Tensor, Tensor]:
    """Return the loss to go down and the logits (B, K) to be judged by, both float32.

    - Logits alone: their loss.
    - Logits and those of auxiliary classifiers: the loss of the first, and `aux_weight` times that of
      each other; judged by the first. Source: Szegedy et al. 2014, arXiv:1409.4842, with weight 0.3.
    - Logits of twins (distillation, no `aux_weight`): the loss of their mean, by which eval mode judges too.
    """
    if isinstance(output, Tensor):
        logits = output.float()
        return loss(logits), logits
    if aux_weight is None:
        logits = torch.stack(output).float().mean(dim=0)
        return loss(logits), logits
    logits, *auxiliary = (part.float() for part in output)
    losses = [loss(part) for part in auxiliary]
    return loss(logits) + aux_weight * torch.stack(losses).sum(), logits
