"""Which strategies race, how far each goes before the slower ones stop, and who wins: pure, and free of torch.

The candidates are the verdict's own choice and its two neighbours in the matrix: what the matrix has for
as many images but less (or more) similar ones, and for as similar but more (or fewer) images; where images
are many, training everything too. Rungs are those of successive halving (Jamieson & Talwalkar 2016,
arXiv:1502.07943): at each the worse half stops, and at the last all but the best.

Work is counted in forward passes of one image, backward passes and filling caches included. Whoever wins,
what the others take is at most half of what the winner takes alone; who can't start under that is left
out. One thing is not counted: strategies on cached features take a few passes over the images each, so
they run whole, and of at most 500 images also beside one of their kind that wins: what that takes is
little beside the start of a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetune.settings import JOIN
from finetune.strategy.entrants import Entrant
from finetune.strategy.matrix import decide
from finetune.types import Evidence, Verdict

MOST_OVERHEAD = 0.5  # share of the winner's own work
MOST_STARTS = 3
CHEAP_PASSES, CHEAP_EPOCH = 6.0, 0.05  # over the images, in all and per epoch: who takes no more than this runs whole
FEW_IMAGES = 500  # a few passes over so many are not counted beside others on cached features
MOST_OF_EPOCHS = 3  # the first rung comes at the latest after the epochs divided by this


@dataclass(frozen=True, slots=True)
class CandidateWork:
    """Forward passes that each epoch of a strategy takes, and over how many images they are counted."""

    epochs: tuple[float, ...]
    num_images: int

    @property
    def whole(self) -> float:
        return sum(self.epochs)

    @property
    def is_cheap(self) -> bool:
        """Whether it stands on cached features: what it takes is a few passes to fill the cache."""
        return self.whole <= CHEAP_PASSES * self.num_images and all(
            epoch <= CHEAP_EPOCH * self.num_images for epoch in self.epochs[1:]
        )

    def until(self, epoch: int) -> float:
        """Return what the epochs up to one take."""
        return sum(self.epochs[:epoch])


@dataclass(frozen=True, slots=True)
class RacePlan:
    """Who starts, after how many epochs the rungs are, who runs whole at once, and who does not start and why."""

    starts: tuple[str, ...]
    rungs: tuple[int, ...]
    whole: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a candidate stands at a rung: score and loss on val of the epoch that it would deliver after so many."""

    label: str
    epochs: int
    val_score: float
    val_loss: float
    is_kept: bool = False


def candidates(verdict: Verdict, evidence: Evidence) -> tuple[Entrant, ...]:
    """Return the verdict's own choice, its neighbours in the matrix (other column, other row), for many images full."""
    other_size = "many" if verdict.size == "few" else "few"
    other_similarity = "dissimilar" if verdict.similarity == "similar" else "similar"
    neighbours = ((verdict.size, other_similarity), (other_size, verdict.similarity))
    entrants = [_entrant(verdict), *(_entrant(decide(evidence, assume=cell)) for cell in neighbours)]
    if verdict.size == "many":
        entrants.insert(1, Entrant("full", "full"))
    return tuple({entrant.label: entrant for entrant in entrants}.values())[:MOST_STARTS]


def plan_race(works: Mapping[str, CandidateWork]) -> RacePlan:
    """Return who starts and the rungs, from the work of each candidate; the verdict's own choice comes first.

    The first rung is as late as the bound allows, and at most a third of the epochs.
    """
    own, *others = works
    starts, left_out, first = [own], {}, 0
    for label in others:
        wider = {name: works[name] for name in (*starts, label)}
        reach = _first_rung(wider)
        if reach is None:
            cheapest, *_, dearest = sorted(wider, key=lambda name: wider[name].whole)
            what = "all" if wider[dearest].is_cheap else "an epoch"
            left_out[label] = f"{what} of {dearest} is more than half of all that {cheapest} takes"
        else:
            starts, first = [*starts, label], reach
    rungs = _rungs(first, [works[label] for label in starts])
    whole = tuple(label for label in starts if works[label].is_cheap)
    return RacePlan(tuple(starts), rungs, whole, left_out)


def overhead(works: Mapping[str, CandidateWork], rungs: Sequence[int], *, winner: str) -> float:
    """Return the most that the others take when one wins: the first rung of all, the next one of those kept.

    Beside a winner on cached features of few images those of its kind are not counted.
    """
    others = [work for label, work in works.items() if label != winner]
    costly = [work for work in others if not work.is_cheap]
    is_little = works[winner].is_cheap and works[winner].num_images <= FEW_IMAGES
    later = max((work.until(rungs[-1]) - work.until(rungs[0]) for work in costly), default=0.0)
    whole = 0.0 if is_little else sum(work.whole for work in others if work.is_cheap)
    return sum(work.until(rungs[0]) for work in costly) + later + whole


def judge(places: Sequence[Place], works: Mapping[str, CandidateWork], *, is_last: bool) -> list[Place]:
    """Return the places at a rung, the best first, and mark who is kept: the better half, at the last rung the best.

    By the score on val, of equals the lower loss, of those the one with less work.
    """
    order = sorted(places, key=lambda place: (-place.val_score, place.val_loss, works[place.label].whole))
    num_kept = 1 if is_last else -(-len(order) // 2)
    return [replace(place, is_kept=rank < num_kept) for rank, place in enumerate(order)]


def _first_rung(works: Mapping[str, CandidateWork]) -> int | None:
    """Return the latest first rung with which no winner pays more than it may; None where not even 1 does."""
    counts = [len(work.epochs) for work in works.values() if not work.is_cheap]
    latest = max(1, min(counts, default=1) // MOST_OF_EPOCHS)
    fits = (
        reach
        for reach in range(latest, 0, -1)
        if all(
            overhead(works, _rungs(reach, [*works.values()]), winner=label) <= MOST_OVERHEAD * work.whole
            for label, work in works.items()
        )
    )
    return next(fits, None)


def _rungs(first: int, works: Sequence[CandidateWork]) -> tuple[int, ...]:
    """Return one rung, and a second where more than two train through layers; none for one alone."""
    if len(works) == 1:
        return ()
    return (first, 2 * first) if sum(not work.is_cheap for work in works) > 2 else (first,)


def _entrant(verdict: Verdict) -> Entrant:
    """Return what a verdict chose; its label is the name of a folder, so that many layer groups are only counted."""
    number = verdict.probe_at if verdict.top_k is None else verdict.top_k
    if isinstance(number, str) and JOIN in number:
        number = f"{number.count(JOIN) + 1}-stages"
    label = verdict.strategy if number is None else f"{verdict.strategy}-{number}"
    return Entrant(label, verdict.strategy, top_k=verdict.top_k, probe_at=verdict.probe_at)
