"""How much an image of each class counts if classes differ greatly in size.

Free of torch. Letters: K classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BETA = 0.999  # each further image adds this much less: up to some hundreds the weight is one over the count
UNEVEN = 3.0  # ratio of the largest class to the smallest from which on "auto" weighs classes


def is_uneven(counts: Sequence[int]) -> bool:
    """Return whether classes differ so much in size that "auto" weighs them."""
    return max(counts, default=0) >= UNEVEN * min((count for count in counts if count), default=1)


def class_weights(counts: Sequence[int]) -> NDArray[np.float64]:
    """Return the weight (K,) of an image of each class, whose mean over all images is 1.

    w_k is proportional to (1 - b) / (1 - b^n_k), one over the effective number of images of a class of n_k.
    A class without images has weight 1.
    Source: Cui et al. 2019, Class-balanced loss based on effective number of samples, arXiv:1901.05555.
    """
    sizes = np.asarray(counts, dtype=np.float64)
    effective = (1 - BETA**sizes) / (1 - BETA)
    weights = np.divide(1, effective, out=np.zeros_like(sizes), where=sizes > 0)
    scaled = weights * sizes.sum() / max((weights * sizes).sum(), 1e-12)
    return np.where(sizes > 0, scaled, 1.0)


def drawing_shares(targets: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return the probability (N,) of drawing each image, so that classes are drawn by their weight."""
    weights = class_weights(np.bincount(targets, minlength=num_classes).tolist())[targets]
    return np.asarray(weights / weights.sum())
