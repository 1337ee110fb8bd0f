"""Linear classifiers on features: logistic regression to convergence, ridge by leave-one-out.

Letters: N images, D features, K classes, L strengths of regularisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.features.families import FAMILIES, Family, relevance
from finetune.features.scaling import blocks, standardised
from finetune.randomness import derive

SHARES = (1.0, 0.5, 0.25, 0.1)  # of the features of several layer groups that may stay
STRENGTHS = tuple(10.0**power for power in (-1, 0, 1, 2, 3, 4))
RIDGES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0))  # of an image
HELD_OUT_STRENGTHS = tuple(10.0**power for power in (4, 3, 2, 1, 0))  # strong first; wrong labels want strong ones
FOLDS = 5
MOST_FOR_SEARCH = 2000  # images on which the strength is chosen
ROWS_AT_ONCE = 1024  # images whose labels (N, K) are computed together


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
) -> Probe:
    """Fit a multinomial logistic regression on (N, D) features, its L2 strength by cross-validation.

    Of another family of targets (N, K): a logistic regression of each class, or a ridge regression of numbers.
    Features are standardised; the standardisation is folded into weight and bias. Minimises
    mean cross-entropy (or the family's loss) + strength / (2 D) * |weight|^2 by full-batch L-BFGS. Images of one
    unit (copies, a group) are in one fold. The strength is chosen on at most 2,000 images; as the loss is a mean, it
    is then divided by how many times as many independent images all of them are, so that it weighs the same per image.
    `weights` (N,) say how much each image counts in the loss, by default all alike; they are for one class alone.
    If selective, then on the most relevant features only: their relevance is the norm of their weights
    in a ridge regression on all, how many stay is chosen by cross-validation.
    Source: Evci et al. 2022, Head2Toe, arXiv:2201.03529 (selection over the features of all layers).

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, mean, std = standardised(features)
    units = range(len(targets)) if units is None else units
    weights = torch.ones(len(targets)) if weights is None else weights
    strength, accuracy, loss = _choose(scaled, targets, num_classes, seed, units, weights, family)
    share = 1.0
    if is_selective:
        share, accuracy, loss = _choose_share(scaled, targets, num_classes, seed, strength, units, weights, family)
    strength *= _independent_share(units, seed)
    kept = torch.arange(scaled.shape[1])
    if share < 1:
        kept = _kept(_by_relevance(scaled, targets, units, family), num_classes, share)
    weight = torch.zeros(num_classes, scaled.shape[1])
    weight[:, kept], bias = _solve(scaled[:, kept], targets, num_classes, strength, weights=weights, family=family)
    folded = weight.double() / std.double()
    return Probe(folded.float(), (bias - folded @ mean.double()).float(), strength, accuracy, share, loss)


def loo_ridge(features: Tensor, targets: Tensor, *, units: Sequence[int] | None = None) -> float:
    """Return the leave-one-out top-1 of a ridge classifier on (N, D) features, at its best strength.

    Raises:
        TrainingError: a feature is not finite.
    """
    guesses = loo_guesses(features, targets, units=units)
    return float((guesses == targets).double().mean())


def loo_guesses(features: Tensor, targets: Tensor, *, units: Sequence[int] | None = None) -> Tensor:
    """Return the class (N,) that a ridge classifier fitted to the other units gives each image; by default each image
    is a unit of its own.

    Its strength is the one with the best top-1. With G = K + s I for the linear kernel K of the N
    standardised features, image i's prediction without itself is
    y_i - (G^-1 y)_i / ((G^-1)_ii - 1 / (N s)): one eigendecomposition serves all, of a matrix that is N x N or
    D x D, whichever is smaller. The 1 / (N s) is image i's part in the means: without it, centred labels give
    themselves away. Of a unit of several images the same holds with the block of G^-1 in place of its diagonal
    element. An image that has no other unit to learn from is given class -1.
    Source: Rifkin & Lippert 2007, Notes on regularized least squares, MIT-CSAIL-TR-2007-025.

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, _, _ = standardised(features.double())
    return _loo_ridge(scaled, targets, units)[0]


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
    scaled, _, _ = standardised(features)
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


@dataclass(frozen=True, slots=True)
class _Ridge:
    """Ridge regressions of every strength s on the labels of standardised features (N, D), from one decomposition.

    With the linear kernel K, (K + s I)^-1 = a I + B diag(g) B': of K itself (a = 0, g = 1 / (values + s)), or, where
    there are fewer features than images, of the covariance of the features (a = 1 / s, g = -a / (values + s)). M is
    the smaller of N and D. Only classes that occur have a column: one that does not is never the likeliest.
    """

    basis: Tensor  # (N, M)
    values: Tensor  # (M,)
    turned: Tensor  # (M, K): B' y, of centred labels y
    targets: Tensor  # (N,): columns of y
    means: Tensor  # (K,): of the labels -1 and 1

    @property
    def count(self) -> int:
        return len(self.basis)

    def inverse(self, strength: float) -> tuple[float, Tensor]:
        """Return a and g (M,)."""
        if len(self.values) == self.count:
            return 0.0, 1 / (self.values + strength)
        return 1 / strength, -1 / (strength * (self.values + strength))

    def labels(self, places: Tensor) -> Tensor:
        """Return the labels (..., K) of some images (...,): 1 for their class, else -1."""
        shape = (*places.shape, len(self.means))
        minus = torch.full(shape, -1.0, dtype=self.basis.dtype)
        return minus.scatter_(-1, self.targets[places][..., None], 1.0)

    def solved(self, strength: float, places: Tensor) -> Tensor:
        """Return the rows (..., K) of (K + s I)^-1 y of some images (...,)."""
        own, inner = self.inverse(strength)
        rows = self.basis[places] @ (inner[:, None] * self.turned)
        return rows + own * (self.labels(places) - self.means) if own else rows


def _ridge(scaled: Tensor, targets: Tensor) -> _Ridge:
    count, width = scaled.shape
    occurring, columns, sizes = torch.unique(targets, return_inverse=True, return_counts=True)
    if width < count:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled / width)  # (D,), (D, D)
        basis = scaled @ vectors / width**0.5
    else:
        values, basis = torch.linalg.eigh(scaled @ scaled.T / width)  # (N,), (N, N)
    means = 2 * sizes.double() / count - 1
    turned = 2 * class_sums(basis, columns, len(occurring)).T - basis.sum(dim=0)[:, None] * (1 + means)
    return _Ridge(basis, values.clamp_min(0), turned, columns, means)


def class_sums(rows: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the sums (K, D) of the rows (N, D) of every class."""
    return rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, targets, rows)


def _left_out(ridge: _Ridge, strength: float, parts: Sequence[Tensor]) -> Tensor:
    """Return the column (N,) that the other units give each image; the units are the rows of `parts`, each (P, S)."""
    own, inner = ridge.inverse(strength)
    part_in_means = 1 / (ridge.count * strength)
    columns = torch.full((ridge.count,), -1)
    for units in parts:
        size = units.shape[1]
        if size == ridge.count:  # nobody else is there
            continue
        for places in torch.split(units, max(1, ROWS_AT_ONCE // size)):
            solved = ridge.solved(strength, places)  # (P, S, K)
            if size == 1:
                diagonal = (ridge.basis[places] ** 2) @ inner + own - part_in_means  # (P, 1)
                errors = solved / diagonal[..., None]
            else:
                rows = ridge.basis[places]  # (P, S, M)
                block = (rows * inner) @ rows.mT + own * torch.eye(size, dtype=rows.dtype) - part_in_means
                errors = torch.linalg.solve(block, solved)
            columns[places] = (ridge.labels(places) - errors).argmax(dim=-1)
    return columns


def _loo_ridge(scaled: Tensor, targets: Tensor, units: Sequence[int] | None = None) -> tuple[Tensor, _Ridge, float]:
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


def _by_relevance(scaled: Tensor, targets: Tensor, units: Sequence[int], family: Family) -> Tensor:
    """Return the features (D,), the most relevant first."""
    sampled = _sample(len(scaled), 0)
    if not family.has_one_class:
        used = relevance(scaled[sampled], targets[sampled], _of(units, sampled))
        return used.argsort(descending=True, stable=True)
    x = scaled[sampled].double()
    _, ridge, strength = _loo_ridge(x, targets[sampled], _of(units, sampled))
    weight = x.T @ ridge.solved(strength, torch.arange(len(x)))  # (D, K), but for a factor
    order: Tensor = weight.norm(dim=1).argsort(descending=True, stable=True)
    return order


def _kept(order: Tensor, num_classes: int, share: float) -> Tensor:
    """Return which features to keep, in order; at least as many as there are classes."""
    most = min(len(order), max(num_classes, round(share * len(order))))
    return order[:most].sort().values


def _choose_share(
    scaled: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    strength: float,
    units: Sequence[int],
    weights: Tensor,
    family: Family,
) -> tuple[float, float, float]:
    """Return the share of features with the least cross-validated loss, its top-1, the loss; of equals, the larger."""
    chosen = _sample(len(scaled), seed)
    scaled, targets, units, weights = scaled[chosen], targets[chosen], _of(units, chosen), weights[chosen]
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
    chosen = _sample(len(scaled), seed)
    scaled, targets, units, weights = scaled[chosen], targets[chosen], _of(units, chosen), weights[chosen]
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


def _independent_share(units: Sequence[int], seed: int) -> float:
    """Return how many units the images have on which the strength is chosen, as a share of those of all."""
    return len(set(_of(units, _sample(len(units), seed)))) / len(set(units))


def _sample(count: int, seed: int) -> Tensor:
    if count <= MOST_FOR_SEARCH:
        return torch.arange(count)
    drawn = np.random.default_rng(derive(seed, "probe")).permutation(count)[:MOST_FOR_SEARCH]
    return torch.from_numpy(np.sort(drawn))


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
