"""Losses of logits (B, K) against targets: class indices (B,), or shares of classes (B, K) that sum to one.

For an image with several classes each share is 0 or 1. Numbers (B, 1) have losses of their own, in deviations from the
mean of train.

To add one: a row in `LOSSES`, its name in `values.Loss`, a line in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    log_softmax,
    logsigmoid,
    mse_loss,
    nll_loss,
    one_hot,
)

from finetune.settings import LossSection
from finetune.tasks import Task
from finetune.values import TASK_LOSSES


@dataclass(frozen=True, slots=True)
class Criterion:
    """The loss that a recipe asks for: the mean over a batch, each image weighted by its class if classes are."""

    section: LossSection
    class_weights: Tensor | None = None  # (K,)
    task: Task = "classify"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss () of logits (B, K) against class indices (B,) or shares (B, K), or of numbers (B, 1)."""
        name = TASK_LOSSES[self.task][0] if self.section.name == "auto" else self.section.name
        table = NUMBER_LOSSES if self.task == "regress" else LOSSES
        losses = table[name](logits, targets, self.section)  # (B,)
        if self.class_weights is not None:
            losses = losses * weights_of(targets, self.class_weights.to(losses))
        return losses.mean()


def weights_of(targets: Tensor, class_weights: Tensor) -> Tensor:
    """Return the weight (B,) of each image by its class, or by the shares of its classes."""
    return class_weights[targets] if targets.ndim == 1 else targets.to(class_weights) @ class_weights


def shares_of(targets: Tensor, num_classes: int, *, smoothing: float) -> Tensor:
    """Return the share (B, K) of each class, `smoothing` of it spread over all classes.

    Source: Szegedy et al. 2016, arXiv:1512.00567.
    """
    shares = one_hot(targets, num_classes).float() if targets.ndim == 1 else targets
    return shares * (1 - smoothing) + smoothing / num_classes


def _cross_entropy(logits: Tensor, targets: Tensor, section: LossSection) -> Tensor:
    return cross_entropy(logits, targets, label_smoothing=section.smoothing, reduction="none")


def _nll(logits: Tensor, targets: Tensor, _: LossSection) -> Tensor:
    """Return minus the log of the probability of the class."""
    logs = log_softmax(logits, dim=1)
    return nll_loss(logs, targets, reduction="none") if targets.ndim == 1 else -(targets * logs).sum(dim=1)


def _bce(logits: Tensor, targets: Tensor, section: LossSection) -> Tensor:
    """Return the mean over the classes of each one's binary cross-entropy.

    Source: Wightman et al. 2021, ResNet strikes back, arXiv:2110.00476.
    """
    shares = shares_of(targets, logits.shape[1], smoothing=section.smoothing).to(logits)
    return binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(dim=1)


def _mse(logits: Tensor, targets: Tensor, section: LossSection) -> Tensor:
    """Return the squared distance of the probabilities from the target; it learns slowly from confident mistakes."""
    shares = shares_of(targets, logits.shape[1], smoothing=section.smoothing)
    return (logits.softmax(dim=1) - shares.to(logits)).square().sum(dim=1)


def _focal(logits: Tensor, targets: Tensor, section: LossSection) -> Tensor:
    """Return the cross-entropy with each image weighted by (1 - p)^gamma, p the probability of its class.

    Source: Lin et al. 2017, arXiv:1708.02002, for several classes, without alpha.
    """
    losses = _cross_entropy(logits, targets, section)
    wrong = -torch.expm1(-cross_entropy(logits, targets, reduction="none"))  # 1 - p
    return wrong**section.focal_gamma * losses


def _asymmetric(logits: Tensor, targets: Tensor, _: LossSection) -> Tensor:
    """Return the loss that discounts classes which an image surely lacks: by (their probability - 0.05)^4.

    The mean over the classes, like `bce`, so that one learning rate serves both.
    Source: Ridnik et al. 2021, Asymmetric loss for multi-label classification, arXiv:2009.14119, gamma 4 and 1.
    """
    has = targets if targets.ndim == 2 else one_hot(targets, logits.shape[1]).to(logits)
    probability = logits.sigmoid()
    lacking = (1 - probability + 0.05).clamp(max=1)
    of_shown = (1 - probability) * logsigmoid(logits)
    of_lacking = (1 - lacking) ** 4 * lacking.clamp(min=1e-8).log()
    return -(has * of_shown + (1 - has) * of_lacking).mean(dim=1)


def _of_numbers(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, LossSection], Tensor]:
    return lambda outputs, targets, _: loss(outputs, targets, reduction="none").mean(dim=1)


LOSSES: dict[str, Callable[[Tensor, Tensor, LossSection], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "nll": _nll,
    "bce": _bce,
    "mse": _mse,
    "focal": _focal,
    "asymmetric": _asymmetric,
}
NUMBER_LOSSES: dict[str, Callable[[Tensor, Tensor, LossSection], Tensor]] = {
    "mse": _of_numbers(mse_loss),
    "huber": _of_numbers(huber_loss),
}
