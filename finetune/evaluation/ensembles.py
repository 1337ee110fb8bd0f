"""Several classifiers as one: their outputs averaged, members chosen on val, and what that gains.

Letters: M members, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.evaluation.intervals import paired, percentiles
from finetune.evaluation.labels import RankedImages
from finetune.evaluation.numbers import r2
from finetune.randomness import Resamples
from finetune.tasks import Task
from finetune.types import Interval

Average = Literal["probabilities", "logits"]
DRAWS = 300
MOST_PER_MEMBER = 4  # rounds of a greedy choice with replacement, for each candidate

Judge = Callable[[Tensor], tuple[float, float]]  # of outputs (N, K): a score (more is better) and a loss (less is)


def averaged(outputs: Sequence[Tensor], counts: Sequence[int], *, task: Task, average: Average) -> Tensor:
    """Return outputs (N, K) that stand for the mean of those of the members, each (N, K), the m-th `counts[m]` times.

    The mean of probabilities comes as its logarithm, of several classes as its log-odds: what makes probabilities of
    a member's outputs makes the mean of theirs of these. Numbers are their mean either way.
    """
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    shares = shares.to(outputs[0])  # (M,)
    stacked = torch.stack(list(outputs))  # (M, N, K)
    weights = shares[:, None, None]
    if average == "logits" or task == "regress":
        return (weights * stacked).sum(dim=0)
    if task == "classify":
        return torch.logsumexp(stacked.log_softmax(dim=2) + weights.log(), dim=0)
    is_there, is_absent = (torch.logsumexp(logsigmoid(part) + weights.log(), dim=0) for part in (stacked, -stacked))
    return is_there - is_absent


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often each candidate takes part, and how the ensemble does on val."""

    counts: tuple[int, ...]
    score: float
    loss: float


def chosen_greedily(
    outputs: Sequence[Tensor], judge: Judge, *, task: Task, average: Average, is_once: bool = False
) -> Mixture:
    """Return the ensemble grown by the candidate that helps most, at the size where it was best.

    A candidate may be taken again, which weights it, unless `is_once` says otherwise. The better of two has the
    higher score; of equals the lower loss; then the one with fewer members.
    Source: Caruana et al. 2004, Ensemble selection from libraries of models, ICML.
    """
    counts = [0] * len(outputs)
    best: Mixture | None = None
    for _ in range(len(outputs) * (1 if is_once else MOST_PER_MEMBER)):
        tried = [_judged(outputs, grown, judge, task, average) for grown in _grown(counts, is_once)]
        step = max(tried, key=_rank)
        counts = list(step.counts)
        if best is None or _rank(step) > _rank(best):
            best = step
    assert best is not None
    return best


def _grown(counts: Sequence[int], is_once: bool) -> Iterator[list[int]]:
    for place, count in enumerate(counts):
        if not (is_once and count):
            yield [*counts[:place], count + 1, *counts[place + 1 :]]


def _judged(outputs: Sequence[Tensor], counts: Sequence[int], judge: Judge, task: Task, average: Average) -> Mixture:
    places = [place for place, count in enumerate(counts) if count]
    score, loss = judge(averaged([outputs[p] for p in places], [counts[p] for p in places], task=task, average=average))
    return Mixture(tuple(counts), score, loss)


def _rank(chosen: Mixture) -> tuple[float, float]:
    return chosen.score, -chosen.loss


def score_gain(
    task: Task, ours: Tensor, theirs: Tensor, targets: Tensor, *, units: Sequence[int] | None = None
) -> Interval:
    """Return how much higher outputs (N, K) score than others on the same images, with the interval of the difference.

    top1 by the images on which they differ (`paired`); mAP and R2 by resamples of the images, the same for both.
    """
    if task == "classify":
        hits, other_hits = ((outputs.argmax(dim=1) == targets).numpy() for outputs in (ours, theirs))
        return paired(hits, other_hits, units)
    score = _mean_average_precision if task == "multilabel" else _explained
    judged = [score(outputs, targets) for outputs in (ours, theirs)]
    whole = np.ones(len(targets))
    drawn = Resamples(len(targets), units, draws=DRAWS, seed=0)
    gaps = [judged[0](weight.astype(float)) - judged[1](weight.astype(float)) for weight in drawn]
    return percentiles(judged[0](whole) - judged[1](whole), gaps)


def _mean_average_precision(outputs: Tensor, targets: Tensor) -> Callable[[NDArray[np.float64]], float]:
    return RankedImages.of(outputs.double().numpy(), targets.numpy() > 0).mean


def _explained(outputs: Tensor, targets: Tensor) -> Callable[[NDArray[np.float64]], float]:
    guesses, right = outputs[:, 0].double().numpy(), targets[:, 0].double().numpy()
    return lambda weight: r2(guesses, right, weight)
