"""Linear classifiers on features: logistic regression to convergence, its strength by cross-validation.

Letters: N images, D features, K classes, L strengths of regularisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.features.families import FAMILIES, Family, relevance
from finetune.features.ridge import best_ridge
from finetune.features.scaling import rescaled, whitening
from finetune.randomness import derive

SHARES = (1.0, 0.5, 0.25, 0.1)  # of the features of several layer groups that may stay
STRENGTHS = tuple(10.0**power for power in (-1, 0, 1, 2, 3, 4))
HELD_OUT_STRENGTHS = tuple(10.0**power for power in (4, 3, 2, 1, 0))  # strong first; wrong labels want strong ones
FOLDS = 5
MOST_FOR_SEARCH = 2000  # images on which the strength is chosen


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier on raw features: logits = features @ weight.T + bias.

    `share` is that of the features that were selected; the others have weight zero.
    """

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)
    strength: float
    top1: float  # cross-validated on the images it was fitted to
    share: float = 1.0
    loss: float = 0.0  # cross-validated too
    judged: float = 1.0  # share of the classes on whose images the strength was chosen and top1 measured


CLASSES = FAMILIES["classify"]


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    seed: int = 0,
    is_selective: bool = False,
    units: Sequence[int] | None = None,
    weights: Tensor | None = None,
    family: Family = CLASSES,
    widths: Sequence[int] | None = None,
    whiten: str = "none",
    epsilon: float = 0.01,
) -> Probe:
    """Fit a multinomial logistic regression on (N, D) features, its L2 strength by cross-validation.

    Of another family of targets (N, K): a logistic regression of each class, or a ridge regression of numbers.
    Features are brought to one scale by `scaling.rescaled`, each layer group of so many features (`widths`) by itself;
    that is folded into weight and bias. Minimises mean cross-entropy (or the family's loss)
    + strength / (2 D) * |weight|^2 by full-batch L-BFGS. Images of one unit (copies, a group) are in one fold. The strength is chosen on at most 2,000 images, of more than 400 classes
    on those of 400; as the loss is a mean, it is then divided by how many times as many independent images all of
    them are, so that it weighs the same per image.
    With `whiten` ("pca", "zca") the features are made white before, by `scaling.whitening`, which is folded in too.
    `weights` (N,) say how much each image counts in the loss, by default all alike; they are for one class alone.
    If selective, then on the most relevant features only: their relevance is the norm of their weights
    in a ridge regression on all, how many stay is chosen by cross-validation.
    Source: Evci et al. 2022, Head2Toe, arXiv:2201.03529 (selection over the features of all layers).

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, mean, divisors = rescaled(features, widths)
    white = None if whiten == "none" else whitening(scaled, whiten, epsilon=epsilon)
    scaled = scaled if white is None else scaled @ white
    units = range(len(targets)) if units is None else units
    weights = torch.ones(len(targets)) if weights is None else weights
    sampled = _sample(targets, seed)
    search = (scaled[sampled], targets[sampled], num_classes, seed, _of(units, sampled), weights[sampled], family)
    strength, accuracy, loss = _choose(*search)
    share = 1.0
    if is_selective:
        share, accuracy, loss = _choose_share(strength, *search)
    strength *= len(set(_of(units, sampled))) / len(set(units))
    kept = torch.arange(scaled.shape[1])
    if share < 1:
        kept = _kept(_by_relevance(scaled, targets, units, family), num_classes, share)
    weight = torch.zeros(num_classes, scaled.shape[1])
    weight[:, kept], bias = _solve(scaled[:, kept], targets, num_classes, strength, weights=weights, family=family)
    unwhitened = weight.double() if white is None else weight.double() @ white.double().T
    folded = unwhitened / divisors.double()
    judged = 1.0
    if _has_one_class(targets):
        judged = len(torch.unique(targets[sampled])) / len(torch.unique(targets))
    return Probe(folded.float(), (bias - folded @ mean.double()).float(), strength, accuracy, share, loss, judged)


def held_out_logits(
    features: Tensor, targets: Tensor, *, num_classes: int, parts: Sequence[Tensor], family: Family = CLASSES
) -> Tensor:
    """Return logits (N, K) that a logistic regression fitted to the other parts gives the images of each part.

    `parts` are index tensors that hold every image once. Of the strengths of regularisation, from strong
    to weak, the last one that lowers the cross-entropy of what is held out is taken: its softmax is
    about as sure as it is right.

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, _, _ = rescaled(features)
    starts: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    best, least = torch.zeros(len(scaled), num_classes), float("inf")
    for strength in HELD_OUT_STRENGTHS:
        logits = torch.zeros(len(scaled), num_classes)
        for place, held in enumerate(parts):
            kept = torch.ones(len(scaled), dtype=torch.bool)
            kept[held] = False
            solved = _solve(scaled[kept], targets[kept], num_classes, strength, start=starts[place], family=family)
            logits[held] = scaled[held] @ solved[0].T + solved[1]
            starts[place] = solved
        loss = float(family.loss(logits, targets, "mean"))
        if loss >= least:
            break
        best, least = logits, loss
    return best


def folds(targets: Tensor, *, seed: int, count: int = FOLDS) -> list[Tensor]:
    """Return stratified folds as index tensors; the same seed gives the same folds."""
    labels = targets.numpy()
    place = np.empty(len(labels), dtype=np.int64)
    generator = np.random.default_rng(derive(seed, "folds"))
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        place[mine] = (np.arange(len(mine)) + generator.integers(count)) % count
    return [torch.from_numpy(np.flatnonzero(place == fold)) for fold in range(count)]


def unit_folds(targets: Tensor, units: Sequence[int], *, seed: int) -> list[Tensor]:
    """Return folds as index tensors, stratified by the class of each unit's first image, no unit divided."""
    _, first, unit = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    parts = folds(targets[torch.from_numpy(first)], seed=seed)
    return [held for part in parts if len(held := torch.from_numpy(np.flatnonzero(np.isin(unit, part.numpy()))))]


def _by_relevance(scaled: Tensor, targets: Tensor, units: Sequence[int], family: Family) -> Tensor:
    """Return the features (D,), the most relevant first."""
    sampled = _sample(targets, 0)
    if not family.has_one_class:
        used = relevance(scaled[sampled], targets[sampled], _of(units, sampled))
        return used.argsort(descending=True, stable=True)
    x = scaled[sampled].double()
    _, ridge, strength = best_ridge(x, targets[sampled], _of(units, sampled))
    weight = x.T @ ridge.solved(strength, torch.arange(len(x)))  # (D, K), but for a factor
    order: Tensor = weight.norm(dim=1).argsort(descending=True, stable=True)
    return order


def _kept(order: Tensor, num_classes: int, share: float) -> Tensor:
    """Return which features to keep, in order; at least as many as there are classes."""
    most = min(len(order), max(num_classes, round(share * len(order))))
    return order[:most].sort().values


def _choose_share(
    strength: float,
    scaled: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    units: Sequence[int],
    weights: Tensor,
    family: Family,
) -> tuple[float, float, float]:
    """Return the share of features with the least cross-validated loss, its top-1, the loss; of equals, the larger."""
    hits, losses = torch.zeros(len(SHARES)), torch.zeros(len(SHARES))
    for held, kept in _held_out(family.strata(targets), seed, units):
        order = _by_relevance(scaled[kept], targets[kept], _of(units, kept.nonzero()[:, 0]), family)
        for index, share in enumerate(SHARES):
            columns = _kept(order, num_classes, share)
            weight, bias = _solve(
                scaled[kept][:, columns], targets[kept], num_classes, strength, weights=weights[kept], family=family
            )
            logits = scaled[held][:, columns] @ weight.T + bias
            hits[index] += family.hits(logits, targets[held])
            losses[index] += len(held) * family.mean_loss(logits, targets[held], weights[held])
    best = int(losses.argmin())
    return SHARES[best], float(hits[best]) / len(targets), float(losses[best]) / len(targets)


def _held_out(targets: Tensor, seed: int, units: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each fold as indices, and a mask of the images outside it."""
    for held in unit_folds(targets, units, seed=seed):
        if 0 < len(held) < len(targets):
            kept = torch.ones(len(targets), dtype=torch.bool)
            kept[held] = False
            yield held, kept


def _choose(
    scaled: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    units: Sequence[int],
    weights: Tensor,
    family: Family,
) -> tuple[float, float, float]:
    """Return the strength with the least cross-validated loss, its top-1, and the loss."""
    hits = torch.zeros(len(STRENGTHS))
    losses = torch.zeros(len(STRENGTHS))
    for held, kept in _held_out(family.strata(targets), seed, units):
        start: tuple[Tensor, Tensor] | None = None
        for index in reversed(range(len(STRENGTHS))):  # strong first: each solution starts the next
            start = _solve(
                scaled[kept],
                targets[kept],
                num_classes,
                STRENGTHS[index],
                start=start,
                weights=weights[kept],
                family=family,
            )
            logits = scaled[held] @ start[0].T + start[1]
            hits[index] += family.hits(logits, targets[held])
            losses[index] += len(held) * family.mean_loss(logits, targets[held], weights[held])
    best = int(losses.argmin())
    return STRENGTHS[best], float(hits[best]) / len(targets), float(losses[best]) / len(targets)


def _of(units: Sequence[int], chosen: Tensor) -> list[int]:
    return [units[place] for place in chosen.tolist()]


def _sample(targets: Tensor, seed: int) -> Tensor:
    """Return the images of a search: of so few classes that each, if they are alike, has an image in every fold."""
    if len(targets) <= MOST_FOR_SEARCH:
        return torch.arange(len(targets))
    generator, places = np.random.default_rng(derive(seed, "probe")), np.arange(len(targets))
    classes = np.unique(targets.numpy()) if _has_one_class(targets) else places[:0]
    if len(classes) > (most := MOST_FOR_SEARCH // FOLDS):
        places = np.flatnonzero(np.isin(targets.numpy(), generator.permutation(classes)[:most]))
    return torch.from_numpy(np.sort(generator.permutation(places)[:MOST_FOR_SEARCH]))


def _has_one_class(targets: Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point()


def _solve(
    scaled: Tensor,
    targets: Tensor,
    num_classes: int,
    strength: float,
    *,
    start: Sequence[Tensor] | None = None,
    weights: Tensor | None = None,
    family: Family = CLASSES,
) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(num_classes, scaled.shape[1]) if start is None else start[0].clone()
    bias = torch.zeros(num_classes) if start is None else start[1].clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = family.mean_loss(scaled @ weight.T + bias, targets, weights)
        loss = loss + strength / (2 * scaled.shape[1]) * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
