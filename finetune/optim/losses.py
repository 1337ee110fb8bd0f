"""Losses, each the mean over a batch: of logits (B, K) against class indices (B,) or, where an image has several
classes, against 0 and 1 (B, K); of numbers (B, 1) against numbers, both in deviations from the mean of train.

To add one: a row in `LOSSES`, its name in `settings.Loss`, a line in docs/strategies.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, mse_loss

from finetune.settings import TASK_LOSSES, LossSection

Criterion = Callable[[Tensor, Tensor], Tensor]


def criterion_of(section: LossSection) -> Criterion:
    """Return the loss that a recipe asks for, as a function of outputs and targets; left open, that of one class."""
    return LOSSES[TASK_LOSSES["classify"][0] if section.name == "auto" else section.name](section)


def focal(logits: Tensor, targets: Tensor, *, gamma: float, label_smoothing: float) -> Tensor:
    """Return the cross-entropy with each image weighted by (1 - p)^gamma, p the probability of its class.

    Source: Lin et al. 2017, arXiv:1708.02002, for several classes, without alpha.
    """
    losses = cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")  # (B,)
    wrong = -torch.expm1(-cross_entropy(logits, targets, reduction="none"))  # 1 - p
    return (wrong**gamma * losses).mean()


def asymmetric(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss that counts classes for less which an image surely lacks; gamma is 4 and 1, the clip 0.05.

    Divided by the number of classes: like `bce` a mean, so that one learning rate serves both.
    Source: Ridnik et al. 2021, Asymmetric loss for multi-label classification, arXiv:2009.14119.
    """
    # As one row: older versions of timm sum over images and classes, newer ones divide by the number of rows.
    total: Tensor = AsymmetricLossMultiLabel()(logits.reshape(1, -1), targets.reshape(1, -1))
    return total / targets.numel()


LOSSES: dict[str, Callable[[LossSection], Criterion]] = {
    "cross-entropy": lambda section: partial(cross_entropy, label_smoothing=section.label_smoothing),
    "focal": lambda section: partial(focal, gamma=section.focal_gamma, label_smoothing=section.label_smoothing),
    "bce": lambda section: binary_cross_entropy_with_logits,
    "asymmetric": lambda section: asymmetric,
    "mse": lambda section: mse_loss,
    "huber": lambda section: huber_loss,
}
