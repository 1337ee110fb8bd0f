"""Ridge regression of several columns of values, by leave-one-out: of classes as 0 and 1, or of numbers.

Letters: N images, D features, K columns, M the smaller of N and D, S images of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.features.scaling import rescaled

RIDGES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))  # of an image


@dataclass(frozen=True, slots=True)
class ValueRidge:
    """Ridge regressions on features (N, D) brought to one scale, of every strength s, from one decomposition.

    With the linear kernel K, (K + s I)^-1 = a I + B diag(g) B': of K itself (a = 0, g = 1 / (values + s)), or, where
    there are fewer features than images, of the covariance of the features (a = 1 / s, g = -a / (values + s)).
    """

    scaled: Tensor  # (N, D)
    basis: Tensor  # (N, M)
    values: Tensor  # (M,)
    centred: Tensor  # (N, K)
    mean: Tensor  # (K,)

    @staticmethod
    def of(features: Tensor, targets: Tensor, widths: Sequence[int] | None = None) -> ValueRidge:
        """Return the regressions of targets (N, K) on features (N, D), of layer groups with `widths` features each.

        Raises:
            TrainingError: a feature is not finite.
        """
        scaled, _, _ = rescaled(features.double(), widths)
        count, width = scaled.shape
        if width < count:
            values, vectors = torch.linalg.eigh(scaled.T @ scaled / width)
            basis = scaled @ vectors / width**0.5
        else:
            values, basis = torch.linalg.eigh(scaled @ scaled.T / width)
        mean = targets.double().mean(dim=0)
        return ValueRidge(scaled, basis, values.clamp_min(0), targets.double() - mean, mean)

    def inverse(self, strength: float) -> tuple[float, Tensor]:
        """Return a and g (M,)."""
        if len(self.values) == len(self.basis):
            return 0.0, 1 / (self.values + strength)
        return 1 / strength, -1 / (strength * (self.values + strength))

    def solved(self, strength: float) -> Tensor:
        """Return (K + s I)^-1 y of the centred values y, (N, K)."""
        own, inner = self.inverse(strength)
        return self.basis @ (inner[:, None] * (self.basis.T @ self.centred)) + own * self.centred

    def left_out(self, strength: float, blocks: Sequence[Tensor]) -> Tensor:
        """Return what the regression fitted to the other units says of each image (N, K).

        As in `probe.loo_guesses`: y_i - (G^-1 y)_i / ((G^-1)_ii - 1 / (N s)), of a unit with its block. An image that
        has no other unit to learn from is given the mean.
        """
        own, inner = self.inverse(strength)
        part_in_means = 1 / (len(self.basis) * strength)
        solved = self.solved(strength)
        diagonal = (self.basis**2) @ inner + own - part_in_means  # (N,)
        errors = solved / diagonal[:, None]
        for block in blocks:
            if len(block) == len(self.basis):
                return self.mean.expand_as(solved)
            rows = self.basis[block]  # (S, M)
            inverse = (rows * inner) @ rows.T + own * torch.eye(len(block), dtype=rows.dtype) - part_in_means
            errors[block] = torch.linalg.solve(inverse, solved[block])
        return self.centred - errors + self.mean

    def weights(self, strength: float) -> Tensor:
        """Return the weights of the rescaled features (D, K), but for a factor."""
        return self.scaled.T @ self.solved(strength)


def best_left_out(ridge: ValueRidge, blocks: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Return what is said of images left out (N, K) at the strength with the least squared error, and that strength."""
    best, least, chosen = ridge.mean.expand_as(ridge.centred), float("inf"), RIDGES[-1]
    for strength in (len(ridge.basis) * share for share in RIDGES):
        left_out = ridge.left_out(strength, blocks)
        error = float((left_out - ridge.mean - ridge.centred).square().sum())
        if error < least:
            best, least, chosen = left_out, error, strength
    return best, chosen
