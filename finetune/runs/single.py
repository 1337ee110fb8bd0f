"""A run in prose: prepare, train, evaluate the best epoch, leave a run folder behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import inline, ranks
from finetune import recipe as recipes
from finetune.backbone.groups import head_modules
from finetune.backbone.load import Backbone
from finetune.checkpoint import best, state
from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.checkpoint.saved import write_model, write_predictions
from finetune.checkpoint.state import Checkpoint
from finetune.data.balance import never_among, never_predicted_text
from finetune.data.places import data_name
from finetune.data.split import units_of
from finetune.evaluation.answers import answers, class_shares
from finetune.evaluation.by_class import ClassFigures, figures_by_class
from finetune.evaluation.forward import collect_logits, watched
from finetune.evaluation.labels import best_thresholds
from finetune.evaluation.metrics import measure_task
from finetune.evaluation.temperature import divide_logits
from finetune.features.knowledge import Knowledge
from finetune.prepare.batch_size import with_micro_batch
from finetune.prepare.batches import Feeder
from finetune.prepare.outline import outline
from finetune.prepare.prepared import Prepared
from finetune.prepare.time_limit import within_time
from finetune.report import page
from finetune.report.answered import Answered, answered
from finetune.report.content import report_content
from finetune.report.looked import Eyes, LitImage, fed_with, first_filters, looked_at
from finetune.runs.calibrate import calibrate, sentence
from finetune.runs.export_at_end import export_at_end
from finetune.runs.knowledge import knowledge_of
from finetune.runs.known_classes import before_and_after
from finetune.runs.known_file import write_known
from finetune.runs.layout import Terms, lay_folder, reopen
from finetune.runs.measured_lr import with_measured_lr
from finetune.runs.refit import FIRST, Refit, refit
from finetune.runs.signals import Stop
from finetune.runs.training import Trained, computing, telling_how_to_go_on, train
from finetune.settings import Recipe
from finetune.tasks import AnyTarget
from finetune.tracking import Tracking, tracker_names, tracking
from finetune.train.number_head import fold_scale
from finetune.types import Event, Manifest, OnEvent, Split, ignore, to_json
from finetune.underway import underway
from finetune.wording import counted

Metrics = dict[str, dict[str, dict[str, float]]]  # by split and name, each with value, low and high
Guesses = dict[Split, list[AnyTarget]]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves: its folder, and the metrics of each split it was measured on."""

    folder: Path
    strategy: str
    metrics: Metrics
    num_epochs: int
    delivered_epoch: int
    problems: int
    never_predicted: dict[str, int] = field(default_factory=dict)  # by the first fit: classes of val

    def __fspath__(self) -> str:
        """Return the place, so that the result itself may be named where a path is asked for."""
        return str(self.folder)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        told = inline.html_lines(f"{self.strategy}, {counted(self.num_epochs, 'epoch')}: {self.folder}")
        return told + inline.html_metrics(self.metrics, first="split")

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {**to_json(self), "folder": str(self.folder)}


@dataclass(slots=True)
class Assessed:
    """The evaluation of a model: metrics, what it says of every image, and with several classes their thresholds."""

    metrics: Metrics = field(default_factory=dict)
    guesses: Guesses = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    by_class: tuple[ClassFigures, ...] = ()  # on val
    known: Knowledge | None = None
    outputs: dict[Split, tuple[Tensor, Tensor]] = field(default_factory=dict)  # (N, K), with what is right


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """One run before its first step, and the seconds that took."""

    prepared: Prepared
    seconds: dict[str, float]

    @property
    def words(self) -> tuple[str, ...]:
        """What the run folder is named after, if it is not named."""
        recipe = self.prepared.recipe
        return (Path(data_name(recipe.data.path)).stem, self.prepared.backbone.architecture.label, recipe.strategy.name)

    def begin(self, folder: RunFolder, *, stop: Stop, on_event: OnEvent) -> RunResult:
        """Lay out a folder that is held, and train in it from the first step.

        Raises:
            FinetuneError: one of its kinds, with the way out in `.hint`.
        """
        ranks.agreed(lambda: lay_folder(folder, self.prepared))
        stop.begun(folder)
        on_event(Event.message(f"run folder: {folder.path}"))
        return _train(folder, self.prepared, None, allowed=[], seconds=self.seconds, stop=stop, on_event=on_event)


def settled_run(prepared: Prepared, recipe: Recipe, *, began: float, on_event: OnEvent = ignore) -> PreparedRun:
    """Return a prepared run with the numbers settled that depend on the machine; it `began` at that second.

    Raises:
        FinetuneError: one of its kinds, with the way out in `.hint`.
    """
    is_open = recipe.strategy.name == "auto"
    num_images = len(prepared.manifest.samples)
    prepared = within_time(prepared, recipe, may_fall=is_open, num_images=num_images, on_event=on_event)
    prepared = with_measured_lr(with_micro_batch(prepared, on_event=on_event), recipe, on_event=on_event)
    on_event(Event.message(outline(prepared, has_limit=recipe.train.time != "none")))
    return PreparedRun(prepared, {"prepare": time.monotonic() - began})


def resume_alone(
    folder: RunFolder,
    terms: Terms,
    *,
    now: Manifest | None = None,
    seconds: dict[str, float] | None = None,
    stop: Stop,
    on_event: OnEvent = ignore,
) -> RunResult:
    """Resume one run, whose folder is held, from its last checkpoint to its end.

    `now` is its current data, if that was read before; `seconds` is earlier time, for timing.json.

    Raises:
        CheckpointError: damaged, or something changed that may not.
    """
    stop.begun(folder)
    ranks.agreed(lambda: folder.asked.unlink(missing_ok=True))
    prepared, allowed = reopen(folder, terms, now=now, on_event=on_event)
    checkpoint = ranks.agreed(lambda: state.load(folder.last, on_event=on_event))
    done = len(checkpoint.state.history) if checkpoint else 0
    on_event(Event.message(f"resuming {folder.path} after {counted(done, 'epoch')}"))
    return _train(folder, prepared, checkpoint, allowed=allowed, seconds=seconds or {}, stop=stop, on_event=on_event)


def _train(
    folder: RunFolder,
    prepared: Prepared,
    checkpoint: Checkpoint | None,
    *,
    allowed: Sequence[str],
    seconds: dict[str, float],
    stop: Stop,
    on_event: OnEvent,
) -> RunResult:
    began = time.monotonic()
    refitted = None
    with telling_how_to_go_on(folder), computing(prepared.compute), _tracked(folder, prepared, on_event) as told:
        trained = train(folder, prepared, checkpoint, stop=stop, on_event=told)
        seconds["train"] = time.monotonic() - began
        delivered = ranks.agreed(lambda: best.load(folder, trained.state.best).model)
        prepared.backbone.model.load_state_dict(delivered)
        temperature = calibrate(trained.feeder, on_event=on_event)
        fold_scale(prepared.backbone.model, prepared.scale)
        assessed = Assessed()
        _evaluate(assessed, trained.feeder, ("val", "test"))
        seconds["evaluate"] = time.monotonic() - began - seconds["train"]
        if prepared.recipe.train.refit:
            refitted = refit(folder, prepared, trained.state, stop=stop, on_event=on_event)
            if temperature:
                divide_logits(head_modules(refitted.prepared.backbone.model), temperature.value)
            fold_scale(refitted.prepared.backbone.model, prepared.scale)
            assessed.metrics = {f"{name}, {FIRST}": values for name, values in assessed.metrics.items()}
            _evaluate(assessed, refitted.feeder, ("test",))
            seconds["refit"] = time.monotonic() - began - seconds["train"] - seconds["evaluate"]
        shared = [f"{count} processes shared the run"] if (count := prepared.compute.processes) > 1 else []
        calibrated = [sentence(temperature)] if temperature else []
        computed = [*allowed, *shared, *trained.feeder.said, *calibrated]
        with underway("report", on_event):
            result = ranks.agreed(
                lambda: _conclude(
                    _Ended(folder, prepared, trained, refitted, assessed, computed, seconds), on_event=on_event
                )
            )
        told.metrics(result.metrics)
    ranks.agreed(lambda: export_at_end(folder, prepared.recipe, seconds=sum(seconds.values()), on_event=on_event))
    return result


def _tracked(folder: RunFolder, prepared: Prepared, on_event: OnEvent) -> AbstractContextManager[Tracking]:
    """Return a context with the trackers of a run; with several processes only the first has any."""
    recipe = prepared.recipe
    names = tracker_names(recipe.train.track) if ranks.is_first() else ()
    keys = {key: recipes.value(recipe, key) for key in recipes.fields()}
    about = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in keys.items()}
    return tracking(
        names,
        folder.path,
        experiment=Path(data_name(recipe.data.path)).stem,
        about=about,
        accelerator=prepared.compute.accelerator,
        on_event=on_event,
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run whose models are trained and measured."""

    folder: RunFolder
    prepared: Prepared
    trained: Trained
    refitted: Refit | None
    assessed: Assessed
    computed: list[str]  # sentences of the report on how it was computed
    seconds: dict[str, float]

    @property
    def delivered(self) -> Backbone:
        return (self.refitted or self).prepared.backbone

    @property
    def delivered_epoch(self) -> int:
        best = self.trained.state.best
        return best.epoch if best else 0


def _conclude(run: _Ended, *, on_event: OnEvent) -> RunResult:
    """Report on a measured model, and deliver it."""
    prepared, assessed = run.prepared, run.assessed
    assessed.known = None if run.refitted else knowledge_of(run.trained.feeder)
    never = _never_predicted(prepared, assessed.guesses)
    if told := _known_classes(prepared, assessed.guesses):
        run.computed.append(told)
        on_event(Event.message(told))
    if never:
        is_refitted, task = run.refitted is not None, prepared.manifest.task
        run.computed.append(never_predicted_text(never, "val", is_refitted=is_refitted, task=task))
        on_event(Event.warning(run.computed[-1]))
    return replace(_deliver(run), never_predicted=never)


def _known_classes(prepared: Prepared, guesses: Guesses) -> str | None:
    """Return a sentence on the classes that the weights knew before."""
    if not prepared.backbone.known or prepared.manifest.task != "classify" or "val" not in guesses:
        return None
    return before_and_after(prepared, guesses["val"])


def _never_predicted(prepared: Prepared, guesses: Guesses) -> dict[str, int]:
    """Return the classes that are never predicted on val, with the number of their images there."""
    targets = [sample.target for sample in prepared.manifest.split("val")]
    return never_among(prepared.manifest.classes, targets, guesses["val"]) if targets else {}


def _deliver(run: _Ended) -> RunResult:
    """Write the model, what it named, and the report; metrics.json last, which ends the run."""
    folder, prepared, assessed = run.folder, run.prepared, run.assessed
    manifest, end = prepared.manifest, run.trained.state
    deviation = prepared.scale.deviation if prepared.scale else None
    of_task: Any = {"task": manifest.task, "thresholds": assessed.thresholds, "deviation": deviation}
    write_model(folder.model, run.delivered, manifest.classes, **of_task)
    shares = class_shares(manifest.task, {name: outputs for name, (outputs, _) in assessed.outputs.items()})
    write_predictions(folder.predictions, manifest, assessed.guesses, shares)
    if assessed.known is not None:
        write_known(folder.known, assessed.known)
    timing = {
        "seconds": run.seconds,
        "num_train": len(manifest.split("train")),
        "epochs": len(end.history),
        "training": list(run.trained.timing),
    }
    write_json(folder.timing, timing)
    _write_report(run)
    best.settle(folder, end.best)
    write_json(folder.metrics, assessed.metrics)
    return RunResult(
        folder.path, prepared.recipe.strategy.name, assessed.metrics, len(end.history), run.delivered_epoch,
        len(manifest.problems),
    )  # fmt: skip


def _write_report(run: _Ended) -> None:
    recipe, manifest, assessed = run.prepared.recipe, run.prepared.manifest, run.assessed
    shown = _answered(run.prepared, assessed)
    looked: tuple[LitImage, ...] = ()
    if shown and not run.refitted:
        looked = looked_at(run.delivered, shown, classes=manifest.classes, root=Path(manifest.root))
    fed = fed_with(
        manifest.split("train"), root=Path(manifest.root), preprocessing=run.delivered.preprocessing,
        augment=recipe.augment, seed=recipe.train.seed,
    )  # fmt: skip
    content = report_content(
        run.folder,
        recipe,
        assessed.metrics,
        run.trained.state.history,
        delivered_epoch=run.delivered_epoch,
        by_class=assessed.by_class,
        answers=shown,
        eyes=Eyes(looked, first_filters(run.delivered.model), fed),
        covered=assessed.known.accuracies() if assessed.known else (),
        seconds=run.seconds,
        waited=sum(row["waited"] for row in run.trained.timing),
        device=str(run.prepared.compute.device),
    )
    page.write(run.folder.report, {**content, "computed": run.computed, "refit": run.refitted})


def _answered(prepared: Prepared, assessed: Assessed) -> Answered | None:
    """Return the answers that a report shows: on test if there is one, else on val."""
    manifest = prepared.manifest
    if manifest.task != "classify" or not assessed.outputs:
        return None
    split, (outputs, targets) = list(assessed.outputs.items())[-1]
    return answered(
        split,
        outputs,
        targets,
        classes=manifest.classes,
        files=[sample.file for sample in manifest.samples if sample.split == split],
        root=Path(manifest.root),
        num_train=list(manifest.counts("train").values()),
        value_range=prepared.backbone.preprocessing.value_range,
    )


def _evaluate(assessed: Assessed, feeder: Feeder, splits: Sequence[Split]) -> None:
    """Measure the model on each split that the data has; the thresholds of several classes are chosen on val, once.

    Of several processes of a run the first does.
    """
    manifest = feeder.prepared.manifest
    for name in splits:
        samples = manifest.split(name)
        if not samples:
            continue
        run, batches = feeder.judged(name)
        shown = watched(batches.epoch(), f"measure on {name}", batches.num_images, on_event=feeder.on_event)
        outputs, targets = collect_logits(run, shown, autocast=feeder.prepared.compute.autocast)
        if not ranks.is_first():
            continue
        if manifest.task == "multilabel" and name == "val":
            assessed.thresholds = best_thresholds(outputs, targets)
            assessed.by_class = figures_by_class(manifest.classes, outputs, targets, assessed.thresholds)
        measured = measure_task(
            manifest.task, outputs, targets, units=units_of(samples), thresholds=assessed.thresholds
        )
        assessed.metrics[str(name)] = {key: to_json(value) for key, value in measured.items()}
        assessed.guesses[name] = answers(manifest.task, outputs, assessed.thresholds)
        assessed.outputs[name] = outputs, targets
