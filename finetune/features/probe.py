"""Linear classifiers on features: logistic regression to convergence, its strength by cross-validation.

Letters: N images, D features, K classes, L strengths of regularisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.features.families import FAMILIES, Family, relevance
from finetune.features.ridge import best_ridge
from finetune.features.scaling import rescaled, spanning, whitening
from finetune.randomness import derive

SHARES = (1.0, 0.5, 0.25, 0.1)  # of the features of several layer groups that may stay
STRENGTHS = tuple(10.0**power for power in (4, 3, 2, 1, 0, -1))  # strong first: each solution starts the next
UNJUDGED = 1.0  # the strength where no class has two units: whatever is held out is of a class never seen
RISES = 2  # in a row of the loss of what is held out, after which weaker ones are not tried
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
Solution = tuple[Tensor, Tensor]  # weight (K, D), bias (K,)


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

    For another family of targets (N, K): a logistic regression of each class, or a ridge regression of numbers.
    Features are brought to one scale by `scaling.rescaled`, each layer group by itself where their `widths` are given;
    that is folded into weight and bias. Minimises mean cross-entropy (or the family's loss)
    + strength / (2 D) * |weight|^2 by full-batch L-BFGS. Images of one unit (copies, a group) are in one fold. The
    strength is chosen on at most 2,000 images, of at most 400 classes; as the loss is a mean, it is then divided by the
    ratio of all independent images to these, so that it weighs the same per image.
    A class of a single unit takes no part in that: when it is held out, no other image shows it.
    With `whiten` ("pca", "zca") the features are whitened first, by `scaling.whitening`, which is folded in too.
    `weights` (N,) say how much each image counts in the loss (default: all the same), for targets of one class only.
    If selective, only the most relevant features are used: relevance is the norm of a feature's weights in a ridge
    regression on all of them, and how many stay is chosen by cross-validation.
    Source: Evci et al. 2022, Head2Toe, arXiv:2201.03529 (selection over the features of all layers).

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, mean, divisors = rescaled(features, widths)
    turned = [] if whiten == "none" else [whitening(scaled, whiten, epsilon=epsilon)]
    if not is_selective and len(scaled) < scaled.shape[1]:
        turned.append(spanning(scaled @ turned[0] if turned else scaled))
    for matrix in turned:
        scaled = scaled @ matrix
    units = range(len(targets)) if units is None else units
    weights = torch.ones(len(targets)) if weights is None else weights
    images = _Images(scaled, targets, num_classes, weights, family)
    chosen = _chosen(images, units, seed=seed, is_selective=is_selective)
    kept = torch.arange(scaled.shape[1])
    if chosen.share < 1:
        kept = _kept(_by_relevance(images, units), num_classes, chosen.share)
    weight = torch.zeros(num_classes, scaled.shape[1])
    weight[:, kept], bias = images.of_features(kept).solve(chosen.strength)
    folded = weight.double()
    for matrix in reversed(turned):
        folded = folded @ matrix.double().T
    folded = folded / divisors.double()
    return Probe(folded.float(), (bias - folded @ mean.double()).float(), *chosen)


class _Choice(NamedTuple):
    """What a probe is but for its weights."""

    strength: float
    top1: float
    share: float
    loss: float
    judged: float


def _chosen(images: _Images, units: Sequence[int], *, seed: int, is_selective: bool) -> _Choice:
    """Choose the strength, and if selective the share of the features, by cross-validation on some of the images."""
    sampled = _sample(images, seed)
    own = _of(units, sampled)
    search, judged = images.among(sampled), 1.0
    strata = images.family.strata(search.targets)
    parts = [held for held in unit_folds(strata, own, seed=seed) if len(held) < len(sampled)]
    if images.family.has_one_class:
        search = replace(search, is_judged=_have_others(search.targets, own))
        judged = len(torch.unique(search.targets[search.is_judged])) / len(torch.unique(images.targets))
        parts = parts if judged else []
    strength, share, top1, loss = UNJUDGED, 1.0, 0.0, 0.0
    if parts:
        strength, left_out = _left_out(search, parts)
        if is_selective:
            share, left_out = _choose_share(search, strength, parts, own)
        top1, loss = search.top1(left_out, parts), search.loss(left_out, parts)
    strength *= len(set(own)) / len(set(units))
    return _Choice(strength, top1, share, loss, judged)


def held_out_logits(
    features: Tensor, targets: Tensor, *, num_classes: int, parts: Sequence[Tensor], family: Family = CLASSES
) -> Tensor:
    """Return logits (N, K) that a logistic regression fitted to the other parts gives the images of each part.

    `parts` are index tensors that hold every image once. The strength of regularisation is the one with the least
    cross-entropy of what is held out: its softmax is about as sure as it is right.

    Raises:
        TrainingError: a feature is not finite.
    """
    scaled, _, _ = rescaled(features)
    images = _Images(scaled @ spanning(scaled), targets, num_classes, torch.ones(len(targets)), family)
    return _left_out(images, parts)[1]


def folds(targets: Tensor, *, seed: int) -> list[Tensor]:
    """Return stratified folds as index tensors; the same seed gives the same folds."""
    labels = targets.numpy()
    place = np.empty(len(labels), dtype=np.int64)
    generator = np.random.default_rng(derive(seed, "folds"))
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        place[mine] = (np.arange(len(mine)) + generator.integers(FOLDS)) % FOLDS
    return [torch.from_numpy(np.flatnonzero(place == fold)) for fold in range(FOLDS)]


def unit_folds(targets: Tensor, units: Sequence[int], *, seed: int) -> list[Tensor]:
    """Return folds as index tensors, stratified by the class of each unit's first image, no unit divided."""
    _, first, unit = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    parts = folds(targets[torch.from_numpy(first)], seed=seed)
    return [held for part in parts if len(held := torch.from_numpy(np.flatnonzero(np.isin(unit, part.numpy()))))]


def _have_others(targets: Tensor, units: Sequence[int]) -> Tensor:
    """Return which images (N,) are of a class that has another unit, too."""
    classes = np.unique(np.stack([np.asarray(units), targets.numpy()]), axis=1)[1]  # (units,)
    return torch.from_numpy(np.bincount(classes)[targets.numpy()] > 1)


def _by_relevance(images: _Images, units: Sequence[int]) -> Tensor:
    """Return the features (D,), the most relevant first."""
    sampled = _sample(images, 0)
    search, own = images.among(sampled), _of(units, sampled)
    if not images.family.has_one_class:
        return relevance(search.scaled, search.targets, own).argsort(descending=True, stable=True)
    x = search.scaled.double()
    _, ridge, strength = best_ridge(x, search.targets, own)
    weight = x.T @ ridge.solved(strength, torch.arange(len(x)))  # (D, K), but for a factor
    order: Tensor = weight.norm(dim=1).argsort(descending=True, stable=True)
    return order


def _kept(order: Tensor, num_classes: int, share: float) -> Tensor:
    """Return which features to keep, in order; at least as many as there are classes."""
    most = min(len(order), max(num_classes, round(share * len(order))))
    return order[:most].sort().values


@dataclass(frozen=True, slots=True)
class _Images:
    """Images that classifiers are fitted to, or a strength or a share of the features is chosen on."""

    scaled: Tensor  # (N, D)
    targets: Tensor
    num_classes: int
    weights: Tensor  # (N,)
    family: Family
    is_judged: Tensor | None = None  # (N,): by which a loss is measured; all, where not given

    def among(self, kept: Tensor) -> _Images:
        """Return the images that places or a mask (N,) keep."""
        return replace(self, scaled=self.scaled[kept], targets=self.targets[kept], weights=self.weights[kept])

    def of_features(self, kept: Tensor) -> _Images:
        """Return the images with some of their features."""
        return replace(self, scaled=self.scaled[:, kept])

    def solve(self, strength: float, *, start: Solution | None = None) -> Solution:
        """Return the classifier of the images, found from a start, or from zeros."""
        scaled, width = self.scaled, self.scaled.shape[1]
        weight = torch.zeros(self.num_classes, width) if start is None else start[0].clone()
        bias = torch.zeros(self.num_classes) if start is None else start[1].clone()
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=200, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
        )
        decay = strength / width

        def closure() -> Tensor:  # the gradient by hand: of problems as small as these autograd takes most of the time
            logits = scaled @ weight.T + bias
            slopes = self.family.mean_slopes(logits, self.targets, self.weights)  # (N, K)
            weight.grad, bias.grad = slopes.T @ scaled + decay * weight, slopes.sum(dim=0)
            return self.family.mean_loss(logits, self.targets, self.weights) + decay / 2 * weight.square().sum()

        with torch.no_grad():
            optimiser.step(closure)  # type: ignore[no-untyped-call]
        return weight, bias

    def loss(self, logits: Tensor, parts: Sequence[Tensor]) -> float:
        """Return the mean loss of the judged images of some parts."""
        held = self.judged(parts)
        return float(self.family.mean_loss(logits[held], self.targets[held], self.weights[held]))

    def top1(self, logits: Tensor, parts: Sequence[Tensor]) -> float:
        """Return the share of the judged images of some parts that are guessed right."""
        held = self.judged(parts)
        return float(self.family.hits(logits[held], self.targets[held])) / len(held)

    def judged(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the places of the judged images of some parts."""
        held = torch.cat(list(parts))
        return held if self.is_judged is None else held[self.is_judged[held]]

    def others(self, held: Tensor) -> Tensor:
        """Return a mask (N,) of the images that are not held out."""
        kept = torch.ones(len(self.targets), dtype=torch.bool)
        kept[held] = False
        return kept


def _left_out(images: _Images, parts: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Return the strength with the least loss of what is held out, and the logits (N, K) that the others give it."""
    logits = torch.zeros(len(images.targets), images.num_classes)
    chosen, best, least, rises = STRENGTHS[-1], logits, float("inf"), 0
    starts: list[Solution | None] = [None] * len(parts)
    for strength in STRENGTHS:
        for place, held in enumerate(parts):
            weight, bias = starts[place] = images.among(images.others(held)).solve(strength, start=starts[place])
            logits[held] = images.scaled[held] @ weight.T + bias
        loss = images.loss(logits, parts)
        rises = rises + 1 if loss >= least else 0
        if loss < least:
            chosen, best, least = strength, logits.clone(), loss
        if rises == RISES:
            break
    return chosen, best


def _choose_share(
    images: _Images, strength: float, parts: Sequence[Tensor], units: Sequence[int]
) -> tuple[float, Tensor]:
    """Return the share of features with the least loss of what is held out, and its logits; of equals, the larger."""
    logits = {share: torch.zeros(len(images.targets), images.num_classes) for share in SHARES}
    for held in parts:
        kept = images.others(held)
        rest = images.among(kept)
        order = _by_relevance(rest, _of(units, kept.nonzero()[:, 0]))
        for share in SHARES:
            columns = _kept(order, images.num_classes, share)
            weight, bias = rest.of_features(columns).solve(strength)
            logits[share][held] = images.scaled[held][:, columns] @ weight.T + bias
    chosen = min(SHARES, key=lambda share: images.loss(logits[share], parts))
    return chosen, logits[chosen]


def _of(units: Sequence[int], chosen: Tensor) -> list[int]:
    return [units[place] for place in chosen.tolist()]


def _sample(images: _Images, seed: int) -> Tensor:
    """Return the images of a search: of so few classes that each, if they are alike, has an image in every fold."""
    count = len(images.targets)
    if count <= MOST_FOR_SEARCH:
        return torch.arange(count)
    generator, places = np.random.default_rng(derive(seed, "probe")), np.arange(count)
    if images.family.has_one_class:
        classes = np.unique(images.targets.numpy())
        if len(classes) > (most := MOST_FOR_SEARCH // FOLDS):
            places = np.flatnonzero(np.isin(images.targets.numpy(), generator.permutation(classes)[:most]))
    return torch.from_numpy(np.sort(generator.permutation(places)[:MOST_FOR_SEARCH]))
