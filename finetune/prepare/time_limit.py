"""Keeping to a time: the predicted time of training on this machine decides the epochs, or the strategy.

The prediction covers the computing of training, from times measured on this machine with random weights (see `costs`).
Reading the data and measuring the evidence come before; what else the machine does is unknown, so `MARGIN` of the
time is kept back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from finetune import ranks
from finetune import recipe as recipes
from finetune.errors import RecipeError, ResourceError
from finetune.prepare.batch_size import skeleton_or_none
from finetune.prepare.costs import costs
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import is_staged, plan_phases, resolve, resolve_numbers, with_head
from finetune.settings import Recipe
from finetune.strategy.budget import Option, choose, seconds_of, told
from finetune.strategy.strategies import cheaper_than
from finetune.types import Event, OnEvent
from finetune.wording import counted

MARGIN = 0.2


def within_time(
    prepared: Prepared,
    asked: Recipe,
    *,
    may_fall: bool,
    num_images: int,
    share: float = 1.0,
    gone: float = 0.0,
    on_event: OnEvent,
) -> Prepared:
    """Return a run that is predicted to be over in `train.time`: as it is, with fewer epochs, or another strategy.

    `asked` is the recipe as the user has it, `may_fall` whether the strategy is the tool's choice, `share`
    of the time is this run's, once the seconds that are `gone` are taken off.

    Raises:
        RecipeError: nothing fits; the hint says what would.
        ResourceError: this network's time cannot be predicted.
    """
    time = asked.train.time
    if time == "none":
        return prepared
    limit = limit_of(asked, gone=gone) * share / (2 if asked.train.refit else 1)
    tried: list[tuple[Prepared, Option]] = []
    for candidate in chain([prepared], _cheaper(prepared, asked) if may_fall else ()):
        tried.append((candidate, predicted(candidate, num_images=num_images)))
        if tried[-1][1].is_enough(limit):
            break
    options = [option for _, option in tried]
    chosen = choose(options, limit)
    if chosen is None:
        others = [] if may_fall else [predicted(other, num_images=num_images) for other in _cheaper(prepared, asked)]
        raise _nothing_fits(time, options, limit, others)
    option, epochs = chosen
    planned = tried[options.index(option)][0]
    note = _note(time, prepared, option, epochs)
    on_event(Event.message(f"time: {note}"))
    recipe = recipes.update(planned.recipe, {"train.epochs": epochs, "train.time": "none"})
    verdict = planned.verdict and replace(
        planned.verdict,
        strategy=option.strategy,
        reason=f"{planned.verdict.reason}; {note}",
        top_k=None if recipe.strategy.top_k == "auto" else recipe.strategy.top_k,
        probe_at=None if recipe.strategy.probe_at == "auto" else recipe.strategy.probe_at,
    )
    return replace(
        planned,
        recipe=recipe,
        phases=plan_phases(recipe, planned.backbone),
        verdict=verdict,
        notes=(*planned.notes, note),
    )


def limit_of(recipe: Recipe, *, gone: float) -> float:
    """Return the seconds of computing that the time of a recipe has left after those that are gone."""
    return max(1.0, (seconds_of(recipe.train.time) - gone) * (1 - MARGIN))


def predicted(candidate: Prepared, *, num_images: int) -> Option:
    """Return what a candidate is predicted to take.

    Raises:
        ResourceError: it cannot be predicted.
    """
    return ranks.agreed(lambda: _predicted(candidate, num_images))


def _predicted(candidate: Prepared, num_images: int) -> Option:
    skeleton = skeleton_or_none(candidate.recipe, num_classes=len(candidate.manifest.classes))
    taken = costs(candidate, skeleton, num_images=num_images) if skeleton else ()
    whole = [cost.seconds for cost in taken if cost.seconds is not None]
    once = [cost.once_seconds for cost in taken if cost.once_seconds is not None]
    if not taken or not len(taken) == len(whole) == len(once):
        raise ResourceError(
            f"how long {candidate.backbone.architecture.label} takes cannot be predicted on this machine",
            hint="Leave out --time, and say how long with --epochs.",
        )
    epochs, least = int(candidate.recipe.train.epochs), max(1, len(candidate.phases))
    return Option(candidate.recipe.strategy.name, epochs, least, sum(once), (sum(whole) - sum(once)) / epochs)


def _cheaper(prepared: Prepared, asked: Recipe) -> Iterator[Prepared]:
    """Yield the run with each cheaper strategy in turn, the dearest of them first."""
    if not is_staged(prepared.recipe, prepared.backbone):
        yield from (_fallen(prepared, asked, name) for name in cheaper_than(prepared.recipe.strategy.name))


def _fallen(prepared: Prepared, asked: Recipe, strategy: str) -> Prepared:
    """Return the run with a cheaper strategy, its numbers those of that strategy."""
    keys = {"strategy.name": strategy, "strategy.top_k": "auto", "strategy.probe_at": "auto"}
    changed = recipes.update(asked, keys)
    if prepared.manifest.samples:
        recipe = resolve(replace(prepared, recipe=changed))
    else:
        recipe = resolve_numbers(changed, prepared.backbone, None)
    backbone = with_head(recipe, prepared.backbone)
    return replace(prepared, recipe=recipe, backbone=backbone, phases=plan_phases(recipe, backbone))


def _note(time: str, prepared: Prepared, option: Option, epochs: int) -> str:
    takes = f"about {told(option.seconds(epochs))} of computing"
    planned = prepared.recipe.strategy.name
    if option.strategy != planned:
        count = f", {counted(epochs, 'epoch')}" if option.epoch else ""
        return f"in {time} {planned} has no time for a third of its epochs → {option.strategy}{count}, {takes}"
    if epochs < option.epochs:
        return f"in {time} {option.strategy} has time for {epochs} of its {counted(option.epochs, 'epoch')}, {takes}"
    return f"{option.strategy} fits into {time}: {takes}"


def _nothing_fits(time: str, options: list[Option], limit: float, others: list[Option]) -> RecipeError:
    """Return the error that says what would fit: a longer time, or one of the other strategies."""
    least = min(options, key=lambda option: option.seconds(option.least))
    needed = least.seconds(least.least)
    count = f"{least.least} epoch{'s' if least.least > 1 else ''} of {least.strategy} alone"
    longer = told(seconds_of(time) * needed / limit)
    fitting = [option.strategy for option in others if option.fitting(limit) is not None]
    other = f"--strategy {' or '.join(fitting)}, which would fit" if fitting else "smaller images (--image-size)"
    return RecipeError(
        f"train.time = {time!r}: {count} is predicted to take {told(needed)} of computing",
        hint=f"Give --time {longer} or more, or {other}.",
    )
