"""A run told to an experiment tracker, by Accelerate's own: what it is, each epoch as it ends, and its metrics.

    tensorboard   RUN/tensorboard, a folder of events           tensorboard --logdir RUN/tensorboard
    mlflow        what MLFLOW_TRACKING_URI names, else mlruns/  mlflow ui
    wandb         its own account, or WANDB_MODE=offline        trackio  its own folder: trackio show

The experiment is called after the data, the run after its folder. A run that goes on writes into what it began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, RecipeError, ResourceError
from finetune.types import Event, OnEvent
from finetune.whole import write_text

if TYPE_CHECKING:
    from finetune.device import Accelerator

Apart = Callable[[], AbstractContextManager[Any]]
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")  # each the name of its package, too
FILE = "tracking.json"  # of a run folder: under which names its trackers know it


def tracker_names(asked: str) -> tuple[str, ...]:
    """Return the trackers that `train.track` names; none for "none".

    Raises:
        RecipeError: one is unknown, or its package is not installed.
    """
    names = () if asked == "none" else tuple(dict.fromkeys(name.strip() for name in asked.split(",")))
    if unknown := [name for name in names if name not in TRACKERS]:
        raise RecipeError(
            f"train.track = {asked!r}: {unknown[0]!r} is not a tracker", hint=f"There are {', '.join(TRACKERS)}."
        )
    if missing := [name for name in names if find_spec(name) is None]:
        raise RecipeError(
            f"train.track = {asked!r}: {missing[0]} is not installed", hint=f"pip install {' '.join(missing)}"
        )
    return names


@contextmanager
def tracking(
    names: tuple[str, ...],
    folder: Path,
    *,
    experiment: str,
    about: Mapping[str, Any],
    accelerator: Callable[[], Accelerator],
    on_event: OnEvent,
) -> Iterator[Tracking]:
    """Tell the trackers of a run inside the block; what they cannot take costs a warning and no run.

    Raises:
        ResourceError: a tracker cannot be begun.
    """
    told = Tracking({}, _beside(accelerator()) if names else nullcontext, on_event)
    try:
        known = _known(folder)
        for name in names:
            with told.apart():
                tracker = told.trackers[name] = _begun(name, folder, experiment, known.get(name))
                if name not in known:
                    tracker.store_init_configuration(dict(about))
                known[name] = _name_of(name, tracker)
        if names:
            write_text(folder / FILE, json.dumps(known, indent=1))
        yield told
    finally:
        told.finish()


class Tracking:
    """The trackers of a run: hears its events, and is told its metrics. They ask for Accelerate's state: ours."""

    def __init__(self, trackers: dict[str, Any], apart: Apart, on_event: OnEvent) -> None:
        self.trackers, self.apart, self.on_event = trackers, apart, on_event

    def __call__(self, event: Event) -> None:
        """Hand an event on, and tell an epoch that has ended."""
        self.on_event(event)
        if event.kind == "epoch":
            facts = {
                **event.facts,
                **{f"val_{name}": value for name, value in (event.facts.get("scores") or {}).items()},
            }
            numbers = ("lr", "train_loss", "train_top1", "val_loss")
            values = {key: facts[key] for key in facts if key in numbers or key.startswith("val_")}
            self.log(values, step=facts["epoch"])

    def metrics(self, metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Tell what was measured at the end, as SPLIT/NAME."""
        self.log({f"{split}/{name}": of["value"] for split, values in metrics.items() for name, of in values.items()})

    def log(self, values: Mapping[str, Any], *, step: int | None = None) -> None:
        """Tell numbers; a tracker that fails is named once, and told no more."""
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, Real)}
        for name, tracker in list(self.trackers.items()):
            try:
                with self.apart():
                    tracker.log(numbers, step=step)
            except Exception as error:  # whatever a tracker or its server does: it must not cost a run
                del self.trackers[name]
                self.on_event(Event.warning(f"{name} gets no more data: {str(error) or type(error).__name__}"))

    def finish(self) -> None:
        """Have the trackers write what they hold."""
        for name, tracker in self.trackers.items():
            try:
                with self.apart():
                    # What Accelerate ends of trackio is ended, and told of, once more at the end of the process.
                    (sys.modules["trackio"] if name == "trackio" else tracker).finish()
            except Exception as error:
                self.on_event(Event.warning(f"{name} did not close cleanly: {str(error) or type(error).__name__}"))


def _beside(accelerator: Accelerator) -> Apart:
    """Return what opens the inside of an Accelerator; what a tracker prints there goes to stderr, as our lines do."""

    @contextmanager
    def beside() -> Iterator[None]:
        with accelerator.apart(), redirect_stdout(sys.stderr):
            yield

    return beside


def _begun(name: str, folder: Path, experiment: str, known: str | None) -> Any:
    """Return a tracker of Accelerate that is at work.

    Raises:
        ResourceError: it cannot be begun.
    """
    from accelerate import tracking as theirs

    kinds = {
        "tensorboard": lambda: theirs.TensorBoardTracker("tensorboard", folder),
        "mlflow": lambda: theirs.MLflowTracker(experiment, run_id=known, run_name=folder.name),
        "wandb": lambda: theirs.WandBTracker(
            experiment, name=folder.name, dir=str(folder), id=known, resume="allow" if known else None
        ),
        "trackio": lambda: theirs.TrackioTracker(experiment, name=known or folder.name, resume="allow"),
    }
    try:
        tracker = kinds[name]()
        tracker.main_process_only = False  # it is the first of the processes that tells
        tracker.start()
    except FinetuneError:
        raise
    except Exception as error:
        raise ResourceError(
            f"{name} cannot be started: {str(error) or type(error).__name__}",
            hint="Leave it out of --track, or check that its server can be reached.",
        ) from error
    return tracker


def _name_of(name: str, tracker: Any) -> str:
    """Return under what a tracker finds its run again."""
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.id) if name == "wandb" else str(getattr(tracker.tracker, "name", name))


def _known(folder: Path) -> dict[str, str]:
    """Return what a run that goes on was called by its trackers; nothing where the file is damaged."""
    try:
        content = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in content.items()} if isinstance(content, dict) else {}
