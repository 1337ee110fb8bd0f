"""Ridge regression of several columns of values, by leave-one-out: of classes as 0 and 1, or of numbers.

Letters: N images, D features, K columns, M the smaller of N and D, S images of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.features.kernel import Kernel
from finetune.features.scaling import rescaled

RIDGES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))  # of an image


@dataclass(frozen=True, slots=True)
class ValueRidge:
    """Ridge regressions on features (N, D) brought to one scale, of every strength s, from one decomposition."""

    scaled: Tensor  # (N, D)
    kernel: Kernel
    centred: Tensor  # (N, K)
    mean: Tensor  # (K,)

    @staticmethod
    def of(features: Tensor, targets: Tensor, widths: Sequence[int] | None = None) -> ValueRidge:
        """Return the regressions of targets (N, K) on features (N, D), of layer groups with `widths` features each.

        Raises:
            TrainingError: a feature is not finite.
        """
        scaled, _, _ = rescaled(features.double(), widths)
        mean = targets.double().mean(dim=0)
        return ValueRidge(scaled, Kernel.of(scaled), targets.double() - mean, mean)

    def solved(self, strength: float) -> Tensor:
        """Return (K + s I)^-1 y of the centred values y, (N, K)."""
        own, inner = self.kernel.inverse(strength)
        return self.kernel.basis @ (inner[:, None] * (self.kernel.basis.T @ self.centred)) + own * self.centred

    def left_out(self, strength: float, blocks: Sequence[Tensor]) -> Tensor:
        """Return what the regression fitted to the other units says of each image (N, K).

        As in `ridge.loo_guesses`: y_i - (G^-1 y)_i / ((G^-1)_ii - 1 / (N s)), for a unit with its block. An image that
        has no other unit to learn from is given the mean.
        """
        basis, count = self.kernel.basis, self.kernel.count
        own, inner = self.kernel.inverse(strength)
        part_in_means = 1 / (count * strength)
        solved = self.solved(strength)
        diagonal = (basis**2) @ inner + own - part_in_means  # (N,)
        errors = solved / diagonal[:, None]
        for block in blocks:
            if len(block) == count:
                return self.mean.expand_as(solved)
            rows = basis[block]  # (S, M)
            inverse = (rows * inner) @ rows.T + own * torch.eye(len(block), dtype=rows.dtype) - part_in_means
            errors[block] = torch.linalg.solve(inverse, solved[block])
        return self.centred - errors + self.mean

    def weights(self, strength: float) -> Tensor:
        """Return the weights of the rescaled features (D, K), but for a factor."""
        return self.scaled.T @ self.solved(strength)


def best_left_out(ridge: ValueRidge, blocks: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Return what is said of images left out (N, K) at the strength with the least squared error, and that strength."""
    best, least, chosen = ridge.mean.expand_as(ridge.centred), float("inf"), RIDGES[-1]
    for strength in (ridge.kernel.count * share for share in RIDGES):
        left_out = ridge.left_out(strength, blocks)
        error = float((left_out - ridge.mean - ridge.centred).square().sum())
        if error < least:
            best, least, chosen = left_out, error, strength
    return best, chosen
