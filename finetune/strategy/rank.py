"""Which backbone to take and why, from what was measured for several on the same images.

Pure. What predicts is the leave-one-out score (top1, mAP or R2) of a linear model on each backbone's features;
that a search over features alone can miss the backbone that fine-tunes best is why the strongest in
general stays on the list.
Source: Renggli et al. 2022, Which model to transfer?, arXiv:2010.06402 (the hybrid search).

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.intervals import Z95
from finetune.strategy.probing import PROBES
from finetune.tasks import TASKS, Task
from finetune.types import Interval
from finetune.wording import apart, counted

FEW_OF_A_CLASS = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backbone with its scores and its cost.

    `judged` is what the linear model fitted to the other images makes of each (see `probing`): whether it is right
    of one class, else the values that it gives. `predicted` is the score that such a model may reach.
    `standing` orders backbones by how strong they are in general, where that is known. What is of classes alone is
    None where images have several, or numbers.
    """

    name: str
    image_size: tuple[int, int]
    num_parameters: int
    gmacs: float
    predicted: Interval
    judged: NDArray[Any] = field(repr=False, compare=False)
    knn_top1: float | None
    logme: float
    h_score: float | None
    standing: float | None = None
    units: tuple[int, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates by predicted score, the best first, the one to take, and why.

    `strongest` is the strongest in general: it stays on the list whatever was predicted. `shortlist`
    is what is worth a training run.
    """

    candidates: tuple[Candidate, ...]
    recommended: str
    reason: str
    strongest: str
    remarks: tuple[str, ...] = ()

    @property
    def shortlist(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.recommended, self.strongest)))

    @property
    def starters(self) -> tuple[str, ...]:
        """The two or three that race: the best predicted, the one to take, the strongest, or else the next best."""
        best, *others = (candidate.name for candidate in self.candidates)
        first = tuple(dict.fromkeys((best, self.recommended, self.strongest)))
        return first if len(first) > 1 else tuple(dict.fromkeys((*first, *others[:1])))


def rank(
    candidates: Sequence[Candidate],
    *,
    task: Task = "classify",
    targets: Tensor | None = None,
    images_of_rarest: int | None = None,
) -> Ranking:
    """Return candidates ordered by predicted score, and which to take; `targets` (N, K) are those of other tasks.

    That is the cheapest whose predicted score is within one standard error of the best one's: among
    those that cannot be told from the best, the one with the fewest multiplications.
    Source of the rule: Breiman et al. 1984, Classification and Regression Trees, 3.4.3; the error is
    that of the paired difference.
    """
    ordered = sorted(
        candidates,
        key=lambda candidate: (-candidate.predicted.value, candidate.gmacs, candidate.num_parameters, candidate.name),
    )
    best = ordered[0]
    losses = {each.name: difference(best, each, task=task, targets=targets) for each in ordered[1:]}
    near = [each for each in ordered if each is best or _is_near(losses[each.name])]
    chosen = min(near, key=lambda candidate: (candidate.gmacs, candidate.num_parameters))
    strongest = strongest_in_general(ordered)
    return Ranking(
        tuple(ordered),
        chosen.name,
        _reason(chosen, best, len(ordered), TASKS[task].score),
        strongest.name,
        tuple(_remarks(ordered, losses, chosen, strongest, images_of_rarest)),
    )


def strongest_in_general(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is strongest in general; if nothing is known, the one with the most compute."""
    known = [candidate for candidate in candidates if candidate.standing is not None]
    if known:
        return max(known, key=lambda candidate: (candidate.standing or 0.0, candidate.gmacs))
    return max(candidates, key=lambda candidate: (candidate.gmacs, candidate.num_parameters))


def difference(
    candidate: Candidate, other: Candidate, *, task: Task = "classify", targets: Tensor | None = None
) -> Interval:
    """Return the interval of a candidate's predicted score minus another's, on the same images."""
    right = torch.empty(0) if targets is None else targets  # for one class, hits are known already
    return PROBES[task].difference(candidate.judged, other.judged, right, candidate.units)


def _is_near(loss: Interval) -> bool:
    return loss.value <= (loss.high - loss.low) / (2 * Z95)


def _reason(chosen: Candidate, best: Candidate, count: int, metric: str) -> str:
    if count == 1:
        return f"{chosen.name}, the only candidate"
    at = f"predicted {metric} {chosen.predicted.value:.3f}"
    if chosen is best:
        return f"{chosen.name}: {at}, the best; nothing cheaper comes within one standard error of it"
    return (
        f"{chosen.name}: {at}, within one standard error of the best"
        f" ({best.name}, {best.predicted.value:.3f}), at {chosen.gmacs:.2g} instead of {best.gmacs:.2g} GMACs"
    )


def _remarks(
    ordered: Sequence[Candidate],
    losses: Mapping[str, Interval],
    chosen: Candidate,
    strongest: Candidate,
    images_of_rarest: int | None,
) -> Iterator[str]:
    best = ordered[0]
    alike = [name for name, loss in losses.items() if loss.low <= 0]
    if alike:
        count = len(best.judged)
        among = apart(count, len(set(best.units)) if best.units else count)
        yield f"these {count} images{among} cannot separate {best.name} from {', '.join(alike)} (95 %)"
    if strongest is not chosen:
        what = "the largest in compute" if strongest.standing is None else "the strongest on ImageNet"
        yield f"{strongest.name} stays on the list as {what}: features alone can miss what fine-tunes best"
    if images_of_rarest is not None and images_of_rarest < FEW_OF_A_CLASS:
        yield (
            f"the rarest class has {counted(images_of_rarest, 'independent image')} of these:"
            " more of them (--sample) would predict better"
        )
