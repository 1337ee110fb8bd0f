"""`tune`: hyperparameters by the seven steps of the lecture notes, on val alone; trials in a storage, then a recipe.

(1) the initial loss, (2) a few images by heart, (3) rates at which the loss falls, (4) a coarse search of short trials,
(5) a finer one of whole ones around the best, (6) what the best curves say, (7) again, in what budget is left.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack
from uuid import uuid4

from finetune import recipe as recipes
from finetune.arguments import Settings, each_of, typed
from finetune.checkpoint import changes
from finetune.checkpoint.claim import new_folder
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.tune_file import TuneRecord, open_tuning, winner_of
from finetune.data.places import data_name
from finetune.errors import CheckpointError, FinetuneError, Interrupted, RecipeError, TrainingError
from finetune.prepare.asked import recipe_of
from finetune.prepare.inputs import architecture_of, computing_as, describe_data, with_backbone, with_task
from finetune.prepare.prepared import prepare
from finetune.report.searched import write_search
from finetune.runs import trials
from finetune.runs.layout import Terms, lay_inputs, with_whole_paths
from finetune.runs.searchable import (
    check_beginnings,
    check_space,
    check_steps,
    decided,
    grid_of,
    known_of_data,
    with_meaning,
)
from finetune.runs.shared import reopen_shared
from finetune.runs.signals import Stop, stop_on_signals
from finetune.runs.trials import LeftBehindError, settled, tried, unseen_test
from finetune.search.diagnosis import diagnosed
from finetune.search.outcome import Tuned
from finetune.search.space import Space, around_best, space_from_json, space_of, space_to_json, usual_space
from finetune.search.study import Search, TrialFacts, check_sampler, is_left_behind, load_optuna, open_storage
from finetune.settings import Recipe
from finetune.strategy.budget import seconds_of
from finetune.tasks import TASKS, guess_loss
from finetune.train.guard import IN_A_RUN, guarded
from finetune.types import EpochLine, Event, Manifest, OnEvent, ignore, to_json
from finetune.whole import write_text
from finetune.wording import counted, listed

TRIALS, FEWEST = 30, 3
COARSE, MOST_EPOCHS = 0.6, 5  # the share of the trials, and the epochs of one at most
STAGES = {"coarse": 0.5, "finer": 0.8, "finest": 1.0}  # and by which share of the time each is over
WAIT = 1.0  # seconds between looks at whether other processes are done
HEADER = "What the trials of this search share; tune.json has what is searched."
WON = "The winner of a search; train it with: finetune run --recipe winner.toml"


@dataclass(slots=True)
class _Tuning:
    """A search at work: its folder and record, what its trials share, and when its time is over."""

    folder: RunFolder
    record: TuneRecord
    recipe: Recipe
    manifest: Manifest
    search: Search
    space: Space
    stop: Stop
    on_event: OnEvent
    until: dict[str, float]

    @property
    def short(self) -> int:
        """The epochs of a coarse trial."""
        return min(MOST_EPOCHS, max(1, self.record.epochs // 3))

    def count(self, stage: str) -> int:
        """Return how many trials a stage has."""
        coarse = max(1, round(self.record.trials * COARSE))
        finer = max(1, (self.record.trials - coarse) // 2)
        return {"coarse": coarse, "finer": finer, "finest": max(0, self.record.trials - coarse - finer)}[stage]

    def epochs_of(self, stage: str, params: Mapping[str, Any]) -> int:
        """Return after how many epochs a trial is whole: nothing is pruned there."""
        return int(params.get("train.epochs", self.short if stage == "coarse" else self.record.epochs))

    def of(self, params: Mapping[str, Any], *, epochs: int | None = None) -> Recipe:
        """Return the recipe of a trial."""
        is_free = epochs is not None and "train.epochs" not in self.space
        more = {"train.epochs": epochs} if is_free else {}
        return with_meaning(self.base, {**params, **more})[0]

    def ended(self, stage: str) -> list[TrialFacts]:
        """Return the trials of a stage that ended, with the values that meant something."""
        return [replace(facts, params=self.used(facts.params)) for facts in self.search.ended(stage)]

    def used(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial that mean something."""
        return with_meaning(self.base, params)[1]

    @property
    def base(self) -> Recipe:
        """The recipe that trials share, with what was decided for all of them."""
        return recipes.update(self.recipe, self.record.pinned)


@guarded(IN_A_RUN)
@typed
def tune(
    data: str | Path | None = None,
    *,
    search: Sequence[str] = (),
    sampler: str = "random",
    trials: int = TRIALS,
    storage: str | None = None,
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
    **settings: Unpack[Settings],
) -> Tuned:
    """Search hyperparameters on val, and leave the recipe that did best there; test is never looked at.

        finetune.tune("imgs", search=["optim.lr=log:1e-4:1e-1", "optim.weight_decay=0,1e-4"], strategy="head-only")

    `search` names keys of the recipe with ranges (`log:`, `lin:`, `int:`) or choices; by default the learning rate and
    weight decay. `sampler` is random, grid or tpe. `time="20m"` ends the search after that time, wherever it is.
    `storage` is the URL of a database that processes and machines share; by default a file in the folder. `settings`
    are the flags of `finetune run`.

    Raises:
        FinetuneError: one of its kinds; of the trials only if every one of them fails.
    """
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < FEWEST:
        raise RecipeError(f"trials = {trials!r}: must be a whole number of {FEWEST} or more")
    kind = check_sampler(sampler)
    asked = recipe_of(recipe, settings={"data": data, **settings}, overrides=overrides)
    named = space_of(each_of(search), asked)
    check_space(asked, named)
    load_optuna()
    if storage is not None:
        open_storage(storage)
    seconds, asked = _seconds(asked), recipes.update(asked, {"train.time": "none", "train.refit": False})
    asked = with_backbone(with_whole_paths(asked), on_event=on_event)
    words = (Path(data_name(asked.data.path)).stem, architecture_of(asked).label, "tune")
    where = new_folder(None if out is None else Path(out), words=words, data=asked.data.path)
    with stop_on_signals() as stop, where as folder:
        with computing_as(asked, on_event=on_event):
            prepared = prepare(asked, on_event=on_event)
        asked = recipes.update(with_task(asked, prepared.manifest), known_of_data(prepared))
        space = named or usual_space(float(prepared.recipe.optim.lr), float(prepared.recipe.optim.weight_decay))
        pinned = decided(asked, prepared, named)
        check_steps(prepared, space, is_named=bool(named))
        check_beginnings(space, recipes.update(asked, pinned), prepared.manifest)
        record = TuneRecord(
            name=uuid4().hex[:12],
            storage=storage,
            space=space_to_json(space),
            sampler=kind,
            seed=asked.train.seed,
            trials=trials,
            seconds=seconds,
            epochs=int(prepared.recipe.train.epochs),
            classes=list(prepared.manifest.classes),
            pinned=pinned,
        )
        record.write(folder)
        lay_inputs(folder, replace(prepared, recipe=asked), header=HEADER)
        on_event(Event.message(f"search folder: {folder.path}"))
        return _search(folder, record, asked, prepared.manifest, stop, on_event)


@guarded(IN_A_RUN)
@typed
def resume_tuning(path: str | Path, *, allow: Iterable[str] = (), on_event: OnEvent = ignore) -> Tuned:
    """Resume a search that was stopped, or help one that runs in another process: each trial is run once.

    What is drawn for a trial depends only on its place: the trials are those of a search that was never stopped.
    `allow` names the kinds of change ("data", "version") that may have come between.

    Raises:
        CheckpointError: no such folder, the search is finished, or something changed that may not.
    """
    terms = Terms(changes.check_kinds(allow))
    folder, record = open_tuning(path)
    if record.is_finished:
        raise CheckpointError(
            f"{folder.path} is finished: there is nothing to resume", hint=f"Its winner: {winner_of(folder)}."
        )
    with stop_on_signals() as stop:
        recipe, manifest = reopen_shared(folder, record.classes, terms, header=HEADER, on_event=on_event)
        return _search(folder, record, recipe, manifest, stop, on_event)


def _seconds(recipe: Recipe) -> float | None:
    return None if recipe.train.time == "none" else float(seconds_of(recipe.train.time))


def _search(
    folder: RunFolder, record: TuneRecord, recipe: Recipe, manifest: Manifest, stop: Stop, on_event: OnEvent
) -> Tuned:
    """Search from where the storage stands to the end, or until the time is over."""
    stop.begun(folder)
    engine = Search(folder.path, name=record.name, url=record.storage, seed=record.seed, sampler=record.sampler)
    began, seconds = time.monotonic(), record.seconds
    until = {stage: math.inf if seconds is None else began + share * seconds for stage, share in STAGES.items()}
    space = space_from_json(record.space)
    tuning = _Tuning(folder, record, recipe, unseen_test(manifest), engine, space, stop, on_event, until)
    _look_first(tuning)
    with engine.working() as worker:
        for stage in STAGES:
            if stage == "finest":
                told = _told_curves(tuning, start="6.")
            if tuning.count(stage):
                _run_stage(tuning, stage, worker)
    return _sum_up(tuning, told)


def _look_first(tuning: _Tuning) -> None:
    """Do the first three steps, and the recipe as it is, unless that was done before."""
    record = tuning.record
    if record.checks is None:
        recipe = tuning.of({})
        with computing_as(recipe):
            prepared = settled(recipe, tuning.manifest)
            found = [trials.check_initial_loss(prepared)]
            if any(phase.solver == "gradient" for phase in prepared.phases):
                found.append(trials.check_overfit(recipe, tuning.manifest, stop=tuning.stop, on_event=tuning.on_event))
                found.append(trials.check_rates(prepared, on_event=tuning.on_event))
            else:
                found += [f"the head is solved: no {what} to look at" for what in ("steps", "rates")]
        record.checks = found
        _write(tuning)
    for number, text in enumerate(record.checks, 1):
        tuning.on_event(Event.message(f"{number}. {text}"))
    if record.usual is None:
        rows: list[EpochLine] = []
        record.usual = to_json(_tried(tuning, "usual", 0, {}, rows, [], []))
        _write(tuning)
    _tell(tuning, _usual(record), 1)


def _run_stage(tuning: _Tuning, stage: str, worker: str) -> None:
    """Do the trials of a stage that no other process does, and wait for those that others do.

    Raises:
        FinetuneError: every trial of the stage failed.
    """
    space, points = _stage_space(tuning, stage)
    count = len(points) if tuning.record.sampler == "grid" else tuning.count(stage)
    if stage == "coarse" and count > tuning.count(stage):
        text = f"the grid has {count} points, with two of every range: more trials than {tuning.record.trials} allow"
        tuning.on_event(Event.warning(text))
    study = tuning.search.plan(stage, count, points)
    words = {"coarse": f"4. coarse: {counted(count, 'trial')} of {counted(tuning.short, 'epoch')}",
             "finer": f"5. finer: {counted(count, 'trial')} of {counted(tuning.record.epochs, 'epoch')}, near the best",
             "finest": f"7. once more: {counted(count, 'trial')}, nearer still"}  # fmt: skip
    tuning.on_event(Event.message(words[stage]))
    failures: list[FinetuneError] = []
    while time.monotonic() < tuning.until[stage]:
        trial = tuning.search.claim(study, space, worker)
        if trial is None:
            if tuning.search.is_over(study):
                break
            time.sleep(WAIT)
            continue
        ended = [facts.curve for facts in tuning.ended(stage) if facts.number < trial.number]
        rows: list[EpochLine] = []
        facts = _tried(tuning, stage, trial.number, tuning.used(trial.params), rows, ended, failures)
        tuning.search.end(study, trial, facts)
        _tell(tuning, facts, count)
    if failures and not any(facts.state == "done" for facts in tuning.ended(stage)):
        first = failures[0]
        raise TrainingError(f"every trial of {stage} failed, the first with: {first.message}", hint=first.hint)


def _stage_space(tuning: _Tuning, stage: str) -> tuple[Space, list[dict[str, Any]]]:
    """Return what a stage searches, and the points that it begins with."""
    is_grid, count = tuning.record.sampler == "grid", tuning.count(stage)
    if stage == "coarse":
        return tuning.space, grid_of(tuning.base, tuning.space, count) if is_grid else []
    before = [facts for name in STAGES for facts in tuning.ended(name) if facts.state == "done"]
    coarse = [facts for facts in before if facts.study == "coarse"]
    whole = [facts for facts in before if facts.study != "coarse"]
    known = whole if stage == "finest" and whole else coarse
    if not known:
        return tuning.space, []
    best = max(known, key=lambda facts: facts.rank)
    space = around_best(tuning.space, best.params)
    if stage == "finest":
        space = around_best(space, best.params)
    points = grid_of(tuning.base, space, count) if is_grid else []
    return space, [best.params, *points][:count] if stage == "finer" else points[:count]


def _tried(
    tuning: _Tuning,
    stage: str,
    number: int,
    params: Mapping[str, Any],
    rows: list[EpochLine],
    others: Sequence[Sequence[float]],
    failures: list[FinetuneError],
) -> TrialFacts:
    """Do a trial and return how it ended; the error that it failed with goes to `failures`."""

    def goes_on(history: Sequence[EpochLine]) -> bool:
        rows[:] = history
        is_judged = stage != "usual" and len(history) < tuning.epochs_of(stage, params)
        return not (is_judged and is_left_behind([_score(row) for row in history], others))

    state: Literal["done", "pruned", "failed"]
    score = loss = None
    reason = ""
    try:
        recipe = tuning.of(params, epochs=tuning.short if stage == "coarse" else None)
        found = tried(recipe, tuning.manifest, goes_on=goes_on, stop=tuning.stop, on_event=tuning.on_event)
        state, score, loss = "done", found.score, found.loss
    except LeftBehindError:
        state, reason = "pruned", f"behind others after {counted(len(rows), 'epoch')}"
        score, loss = _score(rows[-1]), rows[-1].val_loss
    except Interrupted:
        raise
    except FinetuneError as error:
        if stage == "usual":
            raise
        state, reason = "failed", error.message
        failures.append(error)
    curve = tuple(_score(row) for row in rows)
    history = tuple(to_json(row) for row in rows)
    return TrialFacts(stage, number, dict(params), state, score, loss, curve, reason, history)


def _score(row: EpochLine) -> float:
    assert row.score is not None  # a search has val
    return row.score


def _tell(tuning: _Tuning, facts: TrialFacts, count: int) -> None:
    shown = {**to_json(facts), "count": count, "history": []}
    tuning.on_event(Event("trial", shown))


def _usual(record: TuneRecord) -> TrialFacts:
    content = dict(record.usual or {})
    content["curve"], content["history"] = tuple(content["curve"]), tuple(content["history"])
    return TrialFacts(**content)


def _write(tuning: _Tuning) -> None:
    with tuning.search.lock:  # others may be at it
        tuning.record.write(tuning.folder)


def _best(tuning: _Tuning) -> TrialFacts:
    """Return the whole run with the best score so far, the recipe as it is among them."""
    ended = [facts for stage in STAGES if tuning.count(stage) for facts in tuning.ended(stage)]
    whole = [facts for facts in ended if facts.state == "done" and facts.study != "coarse"]
    return max([_usual(tuning.record), *whole], key=lambda facts: facts.rank)


def _told_curves(tuning: _Tuning, *, start: str, but: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what the curves of the best trial so far say, and tell it unless that was told before."""
    guess = guess_loss(tuning.manifest.task, len(tuning.manifest.classes))
    curves = tuple(diagnosed(_best(tuning).lines, guess=guess))
    for text in curves if curves != tuple(but) else ():
        tuning.on_event(Event.message(f"{start} {text}"))
    return curves


def _sum_up(tuning: _Tuning, told: Sequence[str]) -> Tuned:
    """Name the winner, say what its curves tell, and write its recipe; tune.json last."""
    record, usual, best = tuning.record, _usual(tuning.record), _best(tuning)
    curves = _told_curves(tuning, start="the winner:", but=told)
    every = [facts for stage in STAGES if tuning.count(stage) for facts in tuning.ended(stage)]
    ranked = [to_json(facts) for facts in sorted(every, key=lambda facts: facts.rank, reverse=True)]
    place = winner_of(tuning.folder)
    with tuning.search.lock:
        write_text(place, recipes.dump(tuning.of(best.params), header=WON))
        content = {
            "title": f"{data_name(tuning.recipe.data.path)}: a search for {listed(tuning.space)}",
            "data": describe_data(tuning.manifest),
            "score": TASKS[tuning.manifest.task].score,
            "checks": tuple(record.checks or ()),
            "curves": curves,
            "recipe": shlex.quote(str(place)),
        }
        write_search(tuning.folder.report, content, ranked, usual=to_json(usual), best=to_json(best))
        record.results = {"best": to_json(best), "curves": list(curves)}
        record.write(tuning.folder)
    checks, score = tuple(record.checks or ()), TASKS[tuning.manifest.task].score
    return Tuned(tuning.folder.path, score, checks, tuple(every), usual, best, curves, place)
