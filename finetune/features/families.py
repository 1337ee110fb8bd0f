"""How a head is solved for each task: the loss, and how images are put into folds.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot

from finetune.data.targets import strata
from finetune.features.ridge_values import ValueRidge, best_left_out
from finetune.features.scaling import blocks
from finetune.tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]  # of outputs (N, K) and targets, the mean over the images
Slopes = Callable[[Tensor, Tensor], Tensor]  # of outputs (N, K) and targets: the gradient (N, K) of the losses


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of regression: logistic for one class or for each of several, or linear for a number."""

    loss: Loss
    slopes: Slopes
    has_one_class: bool = False

    def mean_loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean loss; where images have one class, each loss times what its image counts."""
        if weights is None or bool((weights == 1).all()):
            return self.loss(logits, targets)
        assert self.has_one_class  # others are not weighted
        return (cross_entropy(logits, targets, reduction="none") * weights).mean()

    def mean_slopes(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the gradient (N, K) of the mean loss by the logits (N, K)."""
        slopes = self.slopes(logits, targets) / len(logits)
        return slopes if weights is None else slopes * weights[:, None]

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor | int:
        """Return how many images are guessed right; 0 where an image has no single class."""
        return (logits.argmax(dim=1) == targets).sum() if self.has_one_class else 0

    def strata(self, targets: Tensor) -> Tensor:
        """Return the classes (N,) by which images are put into folds."""
        return targets if self.has_one_class else torch.from_numpy(strata(targets.numpy()))


def relevance(scaled: Tensor, targets: Tensor, units: Sequence[int]) -> Tensor:
    """Return how much a ridge regression of all columns of targets (N, K) uses each feature (D,)."""
    ridge = ValueRidge.of(scaled, targets)
    _, strength = best_left_out(ridge, blocks(units))
    norms: Tensor = ridge.weights(strength).norm(dim=1)
    return norms


def _of_each(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of a logistic regression for each class, summed over the classes: each is fitted by itself."""
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()


def _slopes_of_one(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(dim=1) - one_hot(targets, logits.shape[1])


def _slopes_of_each(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.sigmoid() - targets


def _slopes_of_number(outputs: Tensor, targets: Tensor) -> Tensor:
    return 2 * (outputs - targets) / outputs.shape[1]


FAMILIES: dict[Task, Family] = {
    "classify": Family(cross_entropy, _slopes_of_one, has_one_class=True),
    "multilabel": Family(_of_each, _slopes_of_each),
    "regress": Family(mse_loss, _slopes_of_number),
}
