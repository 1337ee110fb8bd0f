"""What a classifier knows: how near an image is to those it was trained on, how sure it is, when it should pass.

A classifier names any image with confidence, even if none of its classes is shown. Two things are checked: how near
the features of an image are to those of train images, which reveals images of another kind, and the largest
probability, which reveals those between two classes. What is usual for each is seen on val, on which no step was taken.

Letters: N images, M train images, V val images, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBOURS = 5
FEWEST_VAL = 20  # independent images: with fewer, a share of 95 % is only a guess
MOST_KEPT = 1000  # train images whose features are kept
MOST_VALUES = 4_000_000  # numbers that are kept of them, in 2 bytes each

Reason = Literal["", "unlike what was trained on", "between classes"]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The features of some train images as unit vectors, and how near and how sure val is; see `usual`."""

    features: Tensor  # (M, D) float16, each of length 1
    nearness: NDArray[np.float64]  # (V,)
    confidence: NDArray[np.float64]  # (V,): the largest probability; empty where an image has no single class
    hits: NDArray[np.bool_]  # (V,): whether it was named right; empty likewise

    def near(self, features: Tensor) -> NDArray[np.float64]:
        """Return how near images are by their features (N, D): the mean cosine to the five nearest train images, (N,).

        Source: Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors, arXiv:2204.06507.
        """
        count = min(NEIGHBOURS, len(self.features))
        cosines = normalize(features.double(), dim=1) @ self.features.double().T  # (N, M)
        near: NDArray[np.float64] = cosines.topk(count, dim=1).values.mean(dim=1).numpy()
        return near

    def usual(self, nearness: NDArray[np.float64], confidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of val (N,) that is no nearer, or no surer if that share is smaller: small is unusual."""
        near = _share_below(self.nearness, nearness)
        return np.minimum(near, _share_below(self.confidence, confidence)) if len(self.confidence) else near

    def border(self, coverage: float) -> float:
        """Return the value of `usual` from which on images are answered, so that this share of val is."""
        ordered = np.sort(self.usual(self.nearness, self.confidence))[::-1]
        return float(ordered[max(0, math.ceil(coverage * len(ordered)) - 1)])

    def reasons(
        self, nearness: NDArray[np.float64], confidence: NDArray[np.float64], *, coverage: float
    ) -> list[Reason]:
        """Return why each image should not be named, "" where it may be; `coverage` of val may be."""
        border = self.border(coverage)
        is_far = _share_below(self.nearness, nearness) < border
        is_torn = self.usual(nearness, confidence) < border
        return [
            "unlike what was trained on" if far else "between classes" if torn else ""
            for far, torn in zip(is_far.tolist(), is_torn.tolist(), strict=True)
        ]

    def accuracies(self) -> list[tuple[float, float]]:
        """Return the share of val that is answered and the share of that which is right, from few answers to all.

        One pair for each border that parts val; none where an image has no single class.
        """
        if not len(self.hits):
            return []
        usual = self.usual(self.nearness, self.confidence)
        order = np.argsort(-usual, kind="stable")
        counts = np.arange(1, len(order) + 1)
        is_last = np.append(np.diff(usual[order]) != 0, True)  # of those as usual as one another
        shares = np.stack([counts / len(order), np.cumsum(self.hits[order]) / counts], axis=1)[is_last]
        return [(covered, right) for covered, right in shares.tolist()]


def _share_below(of_val: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of val whose value is not above each of some values."""
    return np.searchsorted(np.sort(of_val), values, side="right") / len(of_val)


def unit_rows(features: Tensor) -> Tensor:
    """Return features (M, D) as unit vectors in float16."""
    return normalize(features.float(), dim=1).to(torch.float16)
