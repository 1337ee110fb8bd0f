"""The linear kernel of features, decomposed once for ridge regressions of every strength.

Letters: N images, D features, M the smaller of N and D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kernel:
    """The linear kernel K of features (N, D) of mean 0, as what (K + s I)^-1 = a I + B diag(g) B' is made of.

    From K itself (a = 0, g = 1 / (values + s)) or, if there are fewer features than images, from the covariance of the
    features (a = 1 / s, g = -a / (values + s)).
    """

    basis: Tensor  # (N, M): B
    values: Tensor  # (M,)

    @staticmethod
    def of(scaled: Tensor) -> Kernel:
        """Return the kernel of features (N, D), by one eigendecomposition."""
        count, width = scaled.shape
        if width < count:
            values, vectors = torch.linalg.eigh(scaled.T @ scaled / width)  # (D,), (D, D)
            basis = scaled @ vectors / width**0.5
        else:
            values, basis = torch.linalg.eigh(scaled @ scaled.T / width)  # (N,), (N, N)
        return Kernel(basis, values.clamp_min(0))

    @property
    def count(self) -> int:
        return len(self.basis)

    def inverse(self, strength: float) -> tuple[float, Tensor]:
        """Return a and g (M,)."""
        if len(self.values) == self.count:
            return 0.0, 1 / (self.values + strength)
        return 1 / strength, -1 / (strength * (self.values + strength))
