"""Racing strategies: the likeliest start, the worse stop at rungs, the winner goes on as if it had run alone.

    OUT/race.json             who started, what each rung showed, who won, what it took
    OUT/race/<candidate>/     a run folder for each, stopped where it lost; the winner's becomes OUT itself
    OUT/asked.toml            the recipe of the race, until the winner's stands

A stopped race goes on with `finetune run --resume OUT`: a candidate's progress is in its checkpoints, and the
result of a rung follows from them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import recipe as recipes
from finetune.checkpoint import state
from finetune.checkpoint.claim import LINGER, claimed, clear_leftovers
from finetune.checkpoint.race_file import (
    RaceRecord,
    RankedBackbone,
    RecordedPlace,
    RecordedRung,
    RecordedWork,
    open_race,
)
from finetune.checkpoint.run_folder import LOCK, RunFolder
from finetune.data import checks
from finetune.data.places import data_name
from finetune.errors import BackboneError, RecipeError, TrainingError
from finetune.prepare.batch_size import with_micro_batch
from finetune.prepare.candidates import Ranked
from finetune.prepare.inputs import computing_as, list_data, reloaded
from finetune.prepare.prepared import Prepared, planned_run, prepare
from finetune.prepare.resolve import resolve
from finetune.prepare.time_limit import within_time
from finetune.prepare.work import work_of
from finetune.runs.layout import Terms, lay_folder, reopen, with_whole_paths
from finetune.runs.signals import Stop
from finetune.runs.single import RunResult, resume_alone
from finetune.runs.training import computing, telling_how_to_go_on, train
from finetune.settings import Recipe
from finetune.strategy.race import MOST_OVERHEAD, CandidateWork, Place, RacePlan, candidates, judge, plan_race
from finetune.tasks import TASKS
from finetune.train.delivery import TOLD_APART, delivered, measured
from finetune.types import EpochLine, Event, Manifest, OnEvent, ignore, to_json
from finetune.whole import unwritable, write_text


@dataclass(frozen=True, slots=True)
class PreparedRace:
    """A race before its first step: every prepared candidate, the favourite first."""

    recipe: Recipe
    field: Mapping[str, Prepared]
    works: Mapping[str, CandidateWork]
    plan: RacePlan
    ranking: Ranked | None = None  # of the backbones, where these race

    @property
    def own(self) -> Prepared:
        return next(iter(self.field.values()))

    @property
    def words(self) -> tuple[str, ...]:
        """What the run folder is named after, if it is not named."""
        what = self.own.backbone.architecture.label if self.ranking is None else "backbones"
        return (Path(data_name(self.own.recipe.data.path)).stem, what, "race")

    def begin(self, folder: RunFolder, *, stop: Stop, on_event: OnEvent) -> RunResult:
        """Lay out a folder that is held, with a run folder for every candidate, and race to the winner's end.

        Raises:
            FinetuneError: one of its kinds; for a single candidate only if all of them fail.
        """
        write_text(folder.asked, recipes.dump(with_whole_paths(self.recipe)))
        shutil.rmtree(folder.candidates, ignore_errors=True)  # of a race that was stopped before it began
        for label in self.plan.starts:
            lay_folder(candidate_folder(folder, label), with_micro_batch(self.field[label], on_event=on_event))
        RaceRecord(
            starts=list(self.plan.starts),
            rungs=list(self.plan.rungs),
            left_out=dict(self.plan.left_out),
            work={label: _recorded(self.works[label]) for label in self.plan.starts if label in self.works},
            ranking=_recorded_ranking(self.ranking) if self.ranking else [],
            num_val=max(1, len(self.own.manifest.split("val"))),
        ).write(folder)
        on_event(Event.message(f"run folder: {folder.path}"))
        on_event(Event.message(told(self.plan)))
        return go_on_racing(folder, Terms(), now=self.own.manifest, stop=stop, on_event=on_event)


def prepare_race(recipe: Recipe, *, manifest: Manifest | None = None, on_event: OnEvent = ignore) -> PreparedRace:
    """Return the race of the likeliest strategies on the data of a recipe.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    auto = as_auto(recipe)
    with computing_as(recipe, on_event=on_event):
        own = prepare(auto, manifest=manifest, on_event=on_event)
        own = leaving_room(own, auto, may_fall=True, on_event=on_event)
        (first, settled), *others = field_of(auto, own).items()

        def fit(_: str, candidate: Prepared) -> Prepared:
            return leaving_room(candidate, auto, may_fall=False, on_event=ignore)

        in_time, late = those_in_time(dict(others), fit)
    works, plan = planned({first: settled, **in_time})
    left_out = {label: error.message for label, error in late.items()} | plan.left_out
    return PreparedRace(recipe, {first: settled, **in_time}, works, replace(plan, left_out=left_out))


def leaving_room(
    candidate: Prepared, asked: Recipe, *, may_fall: bool, gone: float = 0.0, on_event: OnEvent
) -> Prepared:
    """Return a candidate fitted to leave the race its share of the time that remains after `gone` seconds.

    Raises:
        RecipeError: it cannot be made to fit.
    """
    num_images, share = len(candidate.manifest.samples), 1 / (1 + MOST_OVERHEAD)
    return within_time(
        candidate, asked, may_fall=may_fall, num_images=num_images, share=share, gone=gone, on_event=on_event
    )


def those_in_time(
    field: Mapping[str, Prepared], fit: Callable[[str, Prepared], Prepared]
) -> tuple[dict[str, Prepared], dict[str, RecipeError]]:
    """Return the candidates fitted into the time, and why others cannot be."""
    in_time, late = dict[str, Prepared](), dict[str, RecipeError]()
    for label, candidate in field.items():
        try:
            in_time[label] = fit(label, candidate)
        except RecipeError as error:
            late[label] = error
    return in_time, late


def go_on_racing(
    folder: RunFolder, terms: Terms, *, now: Manifest | None = None, stop: Stop, on_event: OnEvent = ignore
) -> RunResult:
    """Race, in a folder that is held, from where the candidates' checkpoints stand to the winner's end.

    `now` is the data as it is, where it was read before.

    Raises:
        CheckpointError: race.json is damaged or of another version, or something changed that may not.
    """
    record = open_race(folder)
    began = time.monotonic()
    stop.begun(folder)
    if record.winner is None:
        with telling_how_to_go_on(folder):
            first = candidate_folder(folder, record.starts[0])
            now = now or checks.scan(list_data(terms.recipe(first.recipe)), on_event=on_event)
            record.winner = _Rungs(folder, record, terms, now, stop, on_event).run()
    _promote(folder, record.winner)
    seconds = {"race": time.monotonic() - began}
    return resume_alone(folder, terms, now=now, seconds=seconds, stop=stop, on_event=on_event)


def candidate_folder(folder: RunFolder, label: str) -> RunFolder:
    """Return the run folder of a candidate."""
    return RunFolder(folder.candidates / label)


def as_auto(recipe: Recipe) -> Recipe:
    """Return a race's recipe as auto would have it."""
    return recipes.update(recipe, {"strategy.name": "auto"})


def field_of(recipe: Recipe, own: Prepared) -> dict[str, Prepared]:
    """Return every prepared candidate, the verdict's own choice first."""
    assert own.evidence is not None and own.verdict is not None  # auto measures both
    plain = replace(own, backbone=reloaded(own))
    first, *others = candidates(own.verdict, own.evidence)
    field = {first.label: own}
    for entrant in others:
        settled = resolve(replace(plain, recipe=recipes.update(recipe, entrant.keys())))
        run = planned_run(plain, settled)
        field[entrant.label] = replace(own, recipe=settled, backbone=run.backbone, phases=run.phases)
    return field


def planned(field: Mapping[str, Prepared]) -> tuple[dict[str, CandidateWork], RacePlan]:
    """Return the work of every candidate for which it is known, and the resulting race."""
    own, *_ = field
    counted = {label: work_of(candidate) for label, candidate in field.items()}
    known = {label: work for label, work in counted.items() if work is not None}
    unknown = {label: "its work cannot be counted" for label in field if label != own and label not in known}
    if own not in known:
        return known, RacePlan((own,), (), (), dict.fromkeys((*field,)[1:], f"the work of {own} cannot be counted"))
    plan = plan_race(known)
    return known, replace(plan, left_out={**unknown, **plan.left_out})


def told(plan: RacePlan) -> str:
    """Return one line about a race."""
    out = "".join(f"; {label} is left out: {why}" for label, why in plan.left_out.items())
    if len(plan.starts) == 1:
        return f"race: {plan.starts[0]} has no rival{out}"
    text = f"race: {', '.join(plan.starts)}"
    if plan.whole:
        all_do = len(plan.whole) == len(plan.starts)
        text += f"; on cached features, so run in full: {'all' if all_do else ', '.join(plan.whole)}"
    if len(plan.whole) < len(plan.starts):
        text += f"; compared after {' and '.join(map(str, plan.rungs))} epoch{'s' if plan.rungs[-1] > 1 else ''}"
    return text + out


@dataclass(frozen=True, slots=True)
class _Rungs:
    """The rungs of a race, the terms on which they are run, and race.json, which records them."""

    folder: RunFolder
    record: RaceRecord
    terms: Terms
    now: Manifest
    stop: Stop
    on_event: OnEvent

    @property
    def works(self) -> dict[str, CandidateWork]:
        """The work of every candidate for which it is known."""
        return {
            label: CandidateWork(tuple(work.epochs), work.num_images, work.gmacs)
            for label, work in self.record.work.items()
        }

    def run(self) -> str:
        """Run every rung and return the winner; finished work is only read again from the checkpoints."""
        record, works = self.record, self.works
        alive, record.results, record.failed = list(record.starts), [], {}
        for epochs in record.rungs:
            places = [place for label in alive if (place := self._run_to(label, epochs, works[label]))]
            ranked = judge(places, works, is_last=epochs == record.rungs[-1], **self._favour())
            places_now = [RecordedPlace(**to_json(place)) for place in ranked]
            record.results.append(RecordedRung(epochs=epochs, places=places_now))
            record.write(self.folder)
            self._say(f"val {TASKS[self.now.task].score}: {', '.join(map(_shown, ranked))}")
            alive = [place.label for place in ranked if place.is_kept]
            if len(alive) == 1:
                break
        record.winner = alive[0]
        if works:
            record.took = _took(record, works)
        record.write(self.folder)
        self._say(f"race: {alive[0]} wins")
        return alive[0]

    def _favour(self) -> dict[str, Any]:
        """Return which backbone the ranking puts first, and by how much another must beat it on val."""
        if not self.record.ranking:
            return {}
        return {"favourite": self.record.starts[0], "told_apart": (TOLD_APART - 0.5) / self.record.num_val}

    def _run_to(self, label: str, epochs: int, work: CandidateWork) -> Place | None:
        """Train a candidate up to a rung and return its place there; None if it fails while others are left."""
        own = candidate_folder(self.folder, label)
        until = None if work.is_cheap else epochs
        try:
            with claimed(own, seconds=LINGER, on_event=self.on_event):
                history, num_val = self._history_to(own, label, until)
        except (BackboneError, TrainingError) as error:
            self.record.failed[label] = error.message
            if len(self.record.failed) == len(self.record.starts):
                raise
            self.on_event(Event.warning(f"{label} failed and leaves the race: {error.message}"))
            return None
        shown = history if until is None else history[:until]
        would_be = delivered(shown, num_val)
        row = next(row for row in shown if row.epoch == would_be)
        return Place(label, len(shown), *measured(row))

    def _history_to(self, own: RunFolder, label: str, until: int | None) -> tuple[list[EpochLine], int]:
        """Return the epochs of a candidate that has already come this far, and the number of val images."""
        clear_leftovers(own)
        checkpoint = state.load(own.last, on_event=self.on_event)
        done = checkpoint.state if checkpoint else None
        prepared, _ = reopen(own, self.terms, now=self.now, named=self.folder, on_event=self.on_event)
        num_val = len(prepared.manifest.split("val"))
        if done and (done.phase == len(prepared.phases) or (until is not None and len(done.history) >= until)):
            return done.history, num_val
        self._say(f"{label}:")
        with computing(prepared.compute):
            trained = train(own, prepared, checkpoint, until=until, stop=self.stop, on_event=self.on_event)
        return trained.state.history, num_val

    def _say(self, text: str) -> None:
        self.on_event(Event.message(text))


def _promote(folder: RunFolder, winner: str) -> None:
    """Make the winner's run folder the race's own, the recipe last; an interrupted move is completed.

    Raises:
        ResourceError: the folder cannot be written.
    """
    own = candidate_folder(folder, winner)
    if not own.path.is_dir():
        return
    try:
        (own.path / LOCK).unlink(missing_ok=True)
        for entry in sorted(own.path.iterdir(), key=lambda path: path.name == own.recipe.name):
            os.replace(entry, folder.path / entry.name)
        own.path.rmdir()
    except OSError as error:
        raise unwritable(folder.path, error) from error


def _recorded(work: CandidateWork) -> RecordedWork:
    return RecordedWork(epochs=list(work.epochs), num_images=work.num_images, gmacs=work.gmacs)


def _recorded_ranking(found: Ranked) -> list[RankedBackbone]:
    return [
        RankedBackbone(
            name=one.name,
            gmacs=one.gmacs,
            predicted=one.predicted.value,
            low=one.predicted.low,
            high=one.predicted.high,
        )
        for one in found.ranking.candidates
    ]


def _took(record: RaceRecord, works: Mapping[str, CandidateWork]) -> dict[str, float]:
    """Return the planned work of the winner alone, the most that the others took, and their ratio."""
    winner = str(record.winner)
    reached: dict[str, int] = {}
    for rung in record.results:
        reached |= {place.label: place.epochs for place in rung.places}
    others = sum(works[label].until(epochs) for label, epochs in reached.items() if label != winner)
    alone = works[winner].whole
    return {"winner_alone": alone, "others": others, "times": (alone + others) / alone}


def _shown(place: Place) -> str:
    after = f"after {place.epochs} epoch{'s' if place.epochs > 1 else ''}"
    return f"{place.label} {place.val_score:.3f} {after}{'' if place.is_kept else ' (stops)'}"
