"""Trials in a storage of Optuna's, sampled by their place: a search that is killed and continued has the same ones.

What is drawn for a trial derives from (seed, study, number, key) and from finished trials; nothing depends on who drew
before. A process holds a lock while it lives, so that others can tell which running trials have lost theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from filelock import FileLock, Timeout

from finetune.errors import RecipeError, ResourceError
from finetune.randomness import derive
from finetune.search.space import ChoiceList, Space
from finetune.types import EpochLine
from finetune.wording import first_line

Sampler = Literal["random", "grid", "tpe"]
SAMPLERS: tuple[Sampler, ...] = ("random", "grid", "tpe")
ETA = 3  # one in three that reach a rung goes on
WORKER, LOSS, CURVE, REASON, HISTORY = "worker", "loss", "curve", "reason", "history"


def load_optuna() -> Any:
    """Return the library.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ResourceError(
            "searching needs Optuna, which is not installed", hint="Install it: pip install 'finetune[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(url: str) -> Any:
    """Return a storage of Optuna's.

    Raises:
        ResourceError: there is no Optuna, or the storage cannot be reached.
    """
    optuna = load_optuna()
    more = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=more)
    except Exception as error:  # of a driver that may be any
        kind = url.partition(":")[0] if "://" in url else "that is named"
        raise ResourceError(
            f"the storage {kind} of the search cannot be used: {first_line(error)}",
            hint="Give an SQLAlchemy URL: postgresql+psycopg://USER@HOST/DATABASE, with its driver installed.",
        ) from error


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """A trial that ended: what it chose, what val says, its scores epoch by epoch."""

    study: str
    number: int
    params: dict[str, Any]
    state: Literal["done", "pruned", "failed"]
    score: float | None
    loss: float | None
    curve: tuple[float, ...]
    reason: str = ""
    history: tuple[dict[str, Any], ...] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """What trials are compared by: the score, of equals the lower loss."""
        return (-1e300 if self.score is None else self.score, -1e300 if self.loss is None else -self.loss)

    @property
    def lines(self) -> list[EpochLine]:
        """Its epochs, as a run has them."""
        return [EpochLine(**{key: row[key] for key in EpochLine.__dataclass_fields__}) for row in self.history]


class Search:
    """The studies of one search in its storage: `url`, or a file in the folder."""

    def __init__(self, folder: Path, *, name: str, url: str | None, seed: int, sampler: Sampler) -> None:
        """Open the storage.

        Raises:
            ResourceError: there is no Optuna, or the storage cannot be reached.
        """
        self.optuna = load_optuna()
        self.folder, self.name, self.seed, self.sampler = folder, name, seed, sampler
        self.lock = FileLock(folder / ".asking.lock")
        with self.lock:  # two that create the tables at once would fail
            self.storage = open_storage(url or f"sqlite:///{(folder / 'study.sqlite').absolute()}")

    def study(self, stage: str) -> Any:
        """Return the study of a stage, made where there is none yet."""
        sampler = _placed(self.optuna, self.sampler, self.seed, stage)
        with self.lock:
            return self.optuna.create_study(
                storage=self.storage, study_name=f"{self.name}/{stage}", sampler=sampler, direction="maximize",
                load_if_exists=True,
            )  # fmt: skip

    def plan(self, stage: str, count: int, points: Sequence[Mapping[str, Any]] = ()) -> Any:
        """Return the study of a stage with its trials queued, the first of them at given points."""
        study = self.study(stage)
        with self.lock:
            for number in range(len(study.get_trials(deepcopy=False)), count):
                study.enqueue_trial(dict(points[number]) if number < len(points) else {})
        return study

    @contextmanager
    def working(self) -> Iterator[str]:
        """Yield the name of this process, whose lock is held inside the block."""
        place = self.folder / "workers"
        place.mkdir(exist_ok=True)
        name = uuid4().hex[:12]
        with FileLock(place / f"{name}.lock"):
            yield name
        with suppress(OSError):
            (place / f"{name}.lock").unlink()

    def claim(self, study: Any, space: Space, worker: str) -> Any | None:
        """Return the next trial of a study that no process has taken, with its values; None where none waits.

        One whose process was killed between two lines of this has no worker, and is taken back.
        """
        with self.lock:
            self._take_back(study)
            waiting = self.optuna.trial.TrialState.WAITING
            if not study.get_trials(deepcopy=False, states=(waiting,)):
                return None
            trial = study.ask(distributions(self.optuna, space))
            trial.set_user_attr(WORKER, worker)
            return trial

    def is_over(self, study: Any) -> bool:
        """Return whether no trial of a study waits or runs."""
        states = self.optuna.trial.TrialState
        with self.lock:
            self._take_back(study)
            return not study.get_trials(deepcopy=False, states=(states.WAITING, states.RUNNING))

    def _take_back(self, study: Any) -> None:
        """Have running trials wait again whose process is gone; their values stay."""
        states = self.optuna.trial.TrialState
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if self._is_gone(trial.user_attrs.get(WORKER)):
                self.storage.set_trial_state_values(trial._trial_id, states.WAITING)

    def _is_gone(self, worker: str | None) -> bool:
        """Return whether a process has ended: it holds its lock no more. Of one in another folder nothing is known."""
        if worker is None:
            return True
        place = self.folder / "workers" / f"{worker}.lock"
        if not place.exists():
            return False
        try:
            with FileLock(place, timeout=0):
                return True
        except Timeout:
            return False

    def ended(self, stage: str) -> list[TrialFacts]:
        """Return the trials of a stage that ended, in the order of their numbers."""
        states = self.optuna.trial.TrialState
        words: dict[Any, Literal["done", "pruned", "failed"]] = {
            states.COMPLETE: "done", states.PRUNED: "pruned", states.FAIL: "failed",
        }  # fmt: skip
        return [
            TrialFacts(
                stage, trial.number, dict(trial.params), words[trial.state],
                None if trial.state == states.FAIL else trial.value, trial.user_attrs.get(LOSS),
                tuple(trial.user_attrs.get(CURVE, ())), trial.user_attrs.get(REASON, ""),
                tuple(trial.user_attrs.get(HISTORY, ())),
            )
            for trial in self.study(stage).get_trials(deepcopy=False)
            if trial.state in words
        ]  # fmt: skip

    def end(self, study: Any, trial: Any, facts: TrialFacts) -> None:
        """Write how a trial ended."""
        states = self.optuna.trial.TrialState
        kept = {LOSS: facts.loss, CURVE: list(facts.curve), REASON: facts.reason, HISTORY: list(facts.history)}
        for key, value in kept.items():
            trial.set_user_attr(key, value)
        state = {"done": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[facts.state]
        study.tell(trial, values=facts.score if facts.state == "done" else None, state=state)


def is_left_behind(curve: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether a trial falls at the rung that it has just come to: epochs 1, 3, 9, ...

    It goes on among the best third of those that came there, itself counted, and while they are fewer than three.
    `others` are the curves of trials that ended. Source: Jamieson & Talwalkar 2016, arXiv:1502.07943, one by one as in
    Li et al. 2020, arXiv:1810.05934.
    """
    epoch = len(curve)
    if not is_rung(epoch):
        return False
    there = sorted((other[epoch - 1] for other in others if len(other) >= epoch), reverse=True)
    if len(there) + 1 < ETA:
        return False
    keeps = (len(there) + 1) // ETA
    return sum(value > curve[-1] for value in there) >= keeps


def is_rung(epoch: int) -> bool:
    """Return whether trials are compared after this number of epochs."""
    rung = 1
    while rung < epoch:
        rung *= ETA
    return rung == epoch


def distributions(optuna: Any, space: Space) -> dict[str, Any]:
    """Return a space as Optuna has it."""
    kinds = optuna.distributions
    found: dict[str, Any] = {}
    for key, axis in space.items():
        if isinstance(axis, ChoiceList):
            found[key] = kinds.CategoricalDistribution(axis.values)
        elif axis.scale == "int":
            found[key] = kinds.IntDistribution(int(axis.low), int(axis.high))
        else:
            found[key] = kinds.FloatDistribution(axis.low, axis.high, log=axis.scale == "log")
    return found


def check_sampler(name: str) -> Sampler:
    """Return the name of a sampler.

    Raises:
        RecipeError: there is none of it.
    """
    found = next((known for known in SAMPLERS if known == name), None)
    if found is None:
        raise RecipeError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}")
    return found


def _placed(optuna: Any, kind: Sampler, seed: int, stage: str) -> Any:
    """Return a sampler that draws each value of a trial from its place alone, and from what ended before."""

    class Placed(optuna.samplers.BaseSampler):  # type: ignore[misc]
        """Makes a new sampler for every value."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            place = derive(seed, "trial", stage, trial.number, name) % 2**32
            make = optuna.samplers.TPESampler if kind == "tpe" else optuna.samplers.RandomSampler
            return make(seed=place).sample_independent(study, trial, name, distribution)

    return Placed()
