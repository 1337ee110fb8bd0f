"""Losses of logits (B, K) against class indices (B,), each the mean over a batch.

To add one: a row in `LOSSES`, its name in `settings.Loss`, a line in docs/strategies.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.settings import LossSection

Criterion = Callable[[Tensor, Tensor], Tensor]


def criterion_of(section: LossSection) -> Criterion:
    """Return the loss that a recipe asks for, as a function of logits and class indices."""
    return LOSSES[section.name](section)


def focal(logits: Tensor, targets: Tensor, *, gamma: float, label_smoothing: float) -> Tensor:
    """Return the cross-entropy with each image weighted by (1 - p)^gamma, p the probability of its class.

    Source: Lin et al. 2017, arXiv:1708.02002, for several classes, without alpha.
    """
    losses = cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")  # (B,)
    wrong = -torch.expm1(-cross_entropy(logits, targets, reduction="none"))  # 1 - p
    return (wrong**gamma * losses).mean()


LOSSES: dict[str, Callable[[LossSection], Criterion]] = {
    "cross-entropy": lambda section: partial(cross_entropy, label_smoothing=section.label_smoothing),
    "focal": lambda section: partial(focal, gamma=section.focal_gamma, label_smoothing=section.label_smoothing),
}
