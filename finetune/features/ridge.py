"""Ridge classifiers on features, by leave-one-out from one decomposition.

Letters: N images, D features, K classes, M the smaller of N and D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.features.kernel import Kernel
from finetune.features.scaling import blocks, rescaled

RIDGES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0))  # of an image
ROWS_AT_ONCE = 1024  # images whose labels (N, K) are computed together


def loo_guesses(
    features: Tensor, targets: Tensor, *, units: Sequence[int] | None = None, widths: Sequence[int] | None = None
) -> Tensor:
    """Return the class (N,) that a ridge classifier fitted to the other units gives each image; by default each image
    is a unit of its own.

    Features are brought to one scale by `scaling.rescaled`, each layer group by itself where their `widths` are given.
    The strength is the one with the best top-1. With G = K + s I for the linear kernel K of the N images, image i's
    prediction without itself is
    y_i - (G^-1 y)_i / ((G^-1)_ii - 1 / (N s)): one eigendecomposition serves all, of a matrix that is N x N or
    D x D, whichever is smaller. The 1 / (N s) is image i's part in the means: without it, centred labels give
    themselves away. Of a unit of several images the same holds with the block of G^-1 in place of its diagonal
    element. An image that has no other unit to learn from is given class -1.
    Source: Rifkin & Lippert 2007, Notes on regularized least squares, MIT-CSAIL-TR-2007-025.

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, _, _ = rescaled(features.double(), widths)
    return best_ridge(scaled, targets, units)[0]


@dataclass(frozen=True, slots=True)
class Ridge:
    """Ridge regressions of every strength s on the labels of features (N, D) of mean 0, from one decomposition.

    Only classes that occur have a column: one that does not is never the likeliest.
    """

    kernel: Kernel
    turned: Tensor  # (M, K): B' y, of centred labels y
    targets: Tensor  # (N,): columns of y
    means: Tensor  # (K,): of the labels -1 and 1

    def labels(self, places: Tensor) -> Tensor:
        """Return the labels (..., K) of some images (...,): 1 for their class, else -1."""
        shape = (*places.shape, len(self.means))
        minus = torch.full(shape, -1.0, dtype=self.turned.dtype)
        return minus.scatter_(-1, self.targets[places][..., None], 1.0)

    def solved(self, strength: float, places: Tensor) -> Tensor:
        """Return the rows (..., K) of (K + s I)^-1 y of some images (...,)."""
        own, inner = self.kernel.inverse(strength)
        rows = self.kernel.basis[places] @ (inner[:, None] * self.turned)
        return rows + own * (self.labels(places) - self.means) if own else rows


def _ridge(scaled: Tensor, targets: Tensor) -> Ridge:
    occurring, columns, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    kernel, means = Kernel.of(scaled), 2 * sizes.double() / len(scaled) - 1
    sums = class_sums(kernel.basis, columns, len(occurring))
    return Ridge(kernel, 2 * sums.T - kernel.basis.sum(dim=0)[:, None] * (1 + means), columns, means)


def class_sums(rows: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the sums (K, D) of the rows (N, D) of every class."""
    return rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, targets, rows)


def _left_out(ridge: Ridge, strength: float, parts: Sequence[Tensor]) -> Tensor:
    """Return the column (N,) that the other units give each image; the units are the rows of `parts`, each (P, S)."""
    count, basis = ridge.kernel.count, ridge.kernel.basis
    own, inner = ridge.kernel.inverse(strength)
    part_in_means = 1 / (count * strength)
    columns = torch.full((count,), -1)
    for units in parts:
        size = units.shape[1]
        if size == count:  # nobody else is there
            continue
        for places in torch.split(units, max(1, ROWS_AT_ONCE // size)):
            solved = ridge.solved(strength, places)  # (P, S, K)
            if size == 1:
                diagonal = (basis[places] ** 2) @ inner + own - part_in_means  # (P, 1)
                errors = solved / diagonal[..., None]
            else:
                rows = basis[places]  # (P, S, M)
                block = (rows * inner) @ rows.mT + own * torch.eye(size, dtype=rows.dtype) - part_in_means
                errors = torch.linalg.solve(block, solved)
            columns[places] = (ridge.labels(places) - errors).argmax(dim=-1)
    return columns


def best_ridge(scaled: Tensor, targets: Tensor, units: Sequence[int] | None = None) -> tuple[Tensor, Ridge, float]:
    """Return the left-out guesses (N,) of the best strength, the ridge regressions, and that strength."""
    ridge, parts = _ridge(scaled, targets), _by_size(units, len(scaled))
    best, guesses, chosen = -1.0, targets, 0.0
    for strength in (len(scaled) * share for share in RIDGES):
        guessed = _left_out(ridge, strength, parts)
        top1 = float((guessed == ridge.targets).double().mean())
        if top1 > best:
            best, guesses, chosen = top1, guessed, strength
    return torch.cat([torch.unique(targets), torch.tensor([-1])])[guesses], ridge, chosen


def _by_size(units: Sequence[int] | None, count: int) -> list[Tensor]:
    """Return the indices of the images of each unit, in a row (P, S) for all units of one size."""
    several = blocks(units)
    single = torch.ones(count, dtype=torch.bool)
    for block in several:
        single[block] = False
    alike: dict[int, list[Tensor]] = {}
    for block in several:
        alike.setdefault(len(block), []).append(block)
    return [single.nonzero(), *(torch.stack(same) for same in alike.values())]
