"""Which strategies race, how far each goes before the worse ones stop, and which wins: pure, and free of torch.

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
from finetune.strategy.budget import Option, told
from finetune.strategy.entrants import Entrant
from finetune.strategy.matrix import decide
from finetune.types import Evidence, Verdict

MOST_OVERHEAD = 0.5  # share of the winner's own work
MOST_STARTS = 3
CHEAP_PASSES, CHEAP_EPOCH = 6.0, 0.05  # over the images, in all and per epoch: who takes no more than this runs whole
FEW_IMAGES = 500  # a few passes over this many do not count beside others on cached features
RANKED_SHARE = 0.25  # of the time that backbones are chosen and trained in
MOST_OF_EPOCHS = 3  # the first rung comes at the latest after the epochs divided by this


@dataclass(frozen=True, slots=True)
class CandidateWork:
    """The forward passes that each epoch of a strategy takes, and the number of images they are counted over.

    `gmacs` weighs a pass where networks differ: the billions of multiply-adds of one.
    """

    epochs: tuple[float, ...]
    num_images: int
    gmacs: float = 1.0

    @property
    def num_passes(self) -> float:
        return sum(self.epochs)

    @property
    def whole(self) -> float:
        return self.gmacs * self.num_passes

    @property
    def is_cheap(self) -> bool:
        """Whether it trains on cached features: all it takes is a few passes to fill the cache."""
        return self.num_passes <= CHEAP_PASSES * self.num_images and all(
            epoch <= CHEAP_EPOCH * self.num_images for epoch in self.epochs[1:]
        )

    def until(self, epoch: int) -> float:
        """Return the work of the epochs up to one."""
        return self.gmacs * sum(self.epochs[:epoch])


@dataclass(frozen=True, slots=True)
class RacePlan:
    """Who starts, after which epochs the rungs are, who runs to the end at once, and who does not start and why."""

    starts: tuple[str, ...]
    rungs: tuple[int, ...]
    whole: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a candidate stands at a rung: score and loss on val of the epoch that it would deliver by then."""

    label: str
    epochs: int
    val_score: float
    val_loss: float
    is_kept: bool = False


def candidates(verdict: Verdict, evidence: Evidence) -> tuple[Entrant, ...]:
    """Return the verdict's own choice, its neighbours in the matrix (other column, other row), for many images full.

    Of a verdict that is not certain the own choice may be that of the other column: both start.
    """
    other_size = "many" if verdict.size == "few" else "few"
    columns = _columns(verdict) if verdict.rival is not None else _columns(verdict)[1:]
    neighbours = (*columns, (other_size, verdict.similarity))
    entrants = [_entrant(verdict), *(_entrant(decide(evidence, assume=cell)) for cell in neighbours)]
    if verdict.size == "many":
        entrants.insert(1 if verdict.rival is None else 3, Entrant("full", "full"))
    return tuple({entrant.label: entrant for entrant in entrants}.values())[:MOST_STARTS]


def both_of(verdict: Verdict, evidence: Evidence) -> tuple[str, str]:
    """Return the labels of both choices of a verdict whose column is not certain, the cheaper one, its own, first."""
    own = _entrant(verdict).label
    (rival,) = {_entrant(decide(evidence, assume=cell)).label for cell in _columns(verdict)} - {own}
    return own, rival


def _columns(verdict: Verdict) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the cells of the matrix for this many images: that of the verdict, and the one beside it."""
    other = "dissimilar" if verdict.similarity == "similar" else "similar"
    return (verdict.size, verdict.similarity), (verdict.size, other)


def plan_race(works: Mapping[str, CandidateWork]) -> RacePlan:
    """Return who starts and the rungs, given the work of each candidate; the verdict's own choice comes first.

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
            left_out[label] = f"{what} of {dearest} costs more than half of {cheapest}"
        else:
            starts, first = [*starts, label], reach
    rungs = _rungs(first, [works[label] for label in starts])
    whole = tuple(label for label in starts if works[label].is_cheap)
    return RacePlan(tuple(starts), rungs, whole, left_out)


def images_to_rank(seconds: Mapping[str, float], limit: float, *, fewest: int, most: int) -> tuple[int, dict[str, str]]:
    """Return how many images backbones are ranked on, and which are left out as too slow for that, and why.

    Ranking takes at most a quarter of the `limit` in seconds; the slowest give way while that is not enough for the
    fewest images.
    """
    kept = sorted(seconds, key=lambda label: seconds[label])
    left_out: dict[str, str] = {}
    while len(kept) > 1 and RANKED_SHARE * limit < fewest * sum(seconds[label] for label in kept):
        slowest = kept.pop()
        takes = told(fewest * seconds[slowest])
        left_out[slowest] = (
            f"to rank it on {fewest} images takes about {takes} of computing, and {told(limit)} are left"
        )
    affordable = RANKED_SHARE * limit / max(sum(seconds[label] for label in kept), 1e-9)
    return max(fewest, min(most, int(affordable))), left_out


def plan_backbone_race(
    works: Mapping[str, CandidateWork], options: Mapping[str, Option], limit: float | None
) -> RacePlan:
    """Return who of several backbones starts, each with its own strategy, and the rungs; the favourite comes first.

    Within a `limit` of seconds those start, from the favourite on, whose race is predicted to be over by then,
    whichever wins; without one all do. The rungs come after a third of the epochs.
    """
    favourite, *others = works
    starts, left_out = [favourite], {}
    for label in others:
        wider = {name: works[name] for name in (*starts, label)}
        if limit is None or (needed := _seconds(wider, options)) <= limit:
            starts.append(label)
        else:
            left_out[label] = f"a race with it takes about {told(needed)} of computing, and {told(limit)} are left"
    field = {label: works[label] for label in starts}
    whole = tuple(label for label in starts if works[label].is_cheap)
    return RacePlan(tuple(starts), _rungs(_latest_rung(field), [*field.values()]), whole, left_out)


def _seconds(works: Mapping[str, CandidateWork], options: Mapping[str, Option]) -> float:
    """Return the most that a race takes: all up to their rungs, and the rest of whoever has most left."""
    rungs = _rungs(_latest_rung(works), [*works.values()])
    shown, rest = [], [0.0]
    for label, work in works.items():
        option = options[label]
        whole = option.seconds(option.epochs)
        shown.append(whole if work.is_cheap else min(whole, option.seconds(rungs[-1])))
        rest.append(whole - shown[-1])
    return sum(shown) + max(rest)


def overhead(works: Mapping[str, CandidateWork], rungs: Sequence[int], *, winner: str) -> float:
    """Return the most that the others take when one wins: all to the first rung, those kept to the next.

    Beside a winner on cached features of few images those of its kind are not counted.
    """
    others = [work for label, work in works.items() if label != winner]
    costly = [work for work in others if not work.is_cheap]
    is_little = works[winner].is_cheap and works[winner].num_images <= FEW_IMAGES
    later = max((work.until(rungs[-1]) - work.until(rungs[0]) for work in costly), default=0.0)
    whole = 0.0 if is_little else sum(work.whole for work in others if work.is_cheap)
    return sum(work.until(rungs[0]) for work in costly) + later + whole


def judge(
    places: Sequence[Place],
    works: Mapping[str, CandidateWork],
    *,
    is_last: bool,
    favourite: str | None = None,
    told_apart: float = 0.0,
) -> list[Place]:
    """Return the places at a rung, the best first, and mark who is kept: the better half, at the last rung the best.

    By the score on val, of equals the lower loss, of those the one with less work. A `favourite` on other grounds
    gives way only to one whose score is higher by more than val can tell apart.
    """

    def standing(place: Place) -> tuple[float, float, float]:
        head_start = told_apart if place.label == favourite else 0.0
        return -place.val_score - head_start, place.val_loss, works[place.label].whole

    num_kept = 1 if is_last else -(-len(places) // 2)
    return [replace(place, is_kept=rank < num_kept) for rank, place in enumerate(sorted(places, key=standing))]


def _first_rung(works: Mapping[str, CandidateWork]) -> int | None:
    """Return the latest first rung at which no winner exceeds the bound; None if not even epoch 1 is early enough."""
    fits = (
        reach
        for reach in range(_latest_rung(works), 0, -1)
        if all(
            overhead(works, _rungs(reach, [*works.values()]), winner=label) <= MOST_OVERHEAD * work.whole
            for label, work in works.items()
        )
    )
    return next(fits, None)


def _latest_rung(works: Mapping[str, CandidateWork]) -> int:
    """Return a third of the fewest epochs among those that do not run to the end at once."""
    counts = [len(work.epochs) for work in works.values() if not work.is_cheap]
    return max(1, min(counts, default=1) // MOST_OF_EPOCHS)


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
