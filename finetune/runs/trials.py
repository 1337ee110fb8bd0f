"""A trial of a search: a run in memory, judged on val alone; and the checks before the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from finetune import recipe as recipes
from finetune.backbone.freeze import freezing
from finetune.evaluation.forward import collect_logits
from finetune.prepare.batch_size import with_micro_batch
from finetune.prepare.batches import Feeder
from finetune.prepare.inputs import computing_as
from finetune.prepare.prepared import Prepared, prepare
from finetune.runs.measured_lr import curve_for
from finetune.runs.signals import Stop
from finetune.runs.training import computing, fit_of, fresh_of
from finetune.sections import AugmentSection, RegulariseSection
from finetune.settings import Recipe
from finetune.tasks import guess_loss
from finetune.train.delivery import delivered, measured
from finetune.train.objectives import objective_of
from finetune.train.phases import fit_phases
from finetune.train.range_test import NoKeeper
from finetune.types import EpochLine, Event, Manifest, OnEvent, Sample, ignore
from finetune.wording import counted

SMALL, EPOCHS = 20, 100  # images, and epochs in which they should be memorised
OFF = 1.5  # ratio to the loss of a guess beyond which the head does not begin at a guess
KNOWN_LOSS = 0.05  # of train, where there is no top1 to be 1


class LeftBehindError(Exception):
    """A trial was stopped at a rung."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial's result on val: the score and the loss of the epoch that would be delivered, and every epoch."""

    score: float
    loss: float
    history: tuple[EpochLine, ...]


@dataclass(slots=True)
class _Watch:
    """Passes progress on, asks after every epoch whether to continue, and stops for signals."""

    stop: Stop
    on_event: OnEvent
    goes_on: Callable[[Sequence[EpochLine]], bool]
    rows: list[EpochLine] = field(default_factory=list)
    is_over: bool = False

    def __call__(self, event: Event) -> None:
        if event.kind == "epoch":
            names = EpochLine.__dataclass_fields__
            self.rows.append(EpochLine(**{key: value for key, value in event.facts.items() if key in names}))
            self.is_over = not self.goes_on(self.rows)
        elif event.kind == "progress":
            self.on_event(event)

    def raise_if_asked(self, save: Callable[[], None] | None = None) -> None:
        self.stop.raise_if_asked()
        if self.is_over:
            raise LeftBehindError


def settled(recipe: Recipe, manifest: Manifest) -> Prepared:
    """Return a run before its first step, without reporting; everything random begins the same each time."""
    return with_micro_batch(prepare(recipe, manifest=manifest, on_event=ignore), on_event=ignore)


def tried(
    recipe: Recipe,
    manifest: Manifest,
    *,
    goes_on: Callable[[Sequence[EpochLine]], bool] = lambda rows: True,
    stop: Stop,
    on_event: OnEvent = ignore,
) -> Outcome:
    """Train as a recipe says, in memory, and return the result on val.

    `goes_on` is asked after every epoch whether the trial goes on.

    Raises:
        LeftBehindError: `goes_on` says no. FinetuneError: as a run would.
    """
    watch = _Watch(stop, on_event, goes_on)
    with computing_as(recipe):
        prepared = settled(recipe, manifest)
        with computing(prepared.compute):
            fit = fit_of(prepared, Feeder(prepared, on_event=watch, stop=watch), NoKeeper(), watch)
            end = fit_phases(fit, prepared.phases, fresh=fresh_of(prepared))
    return outcome_of(end.history, len(manifest.split("val")))


def outcome_of(history: Sequence[EpochLine], num_val: int) -> Outcome:
    """Return the outcome of the epoch that would be delivered."""
    chosen = delivered(history, num_val)
    score, loss = measured(next(row for row in history if row.epoch == chosen))
    return Outcome(score, loss, tuple(history))


def unseen_test(manifest: Manifest) -> Manifest:
    """Return data without its test images: a search must not look at them."""
    return replace(manifest, samples=tuple(sample for sample in manifest.samples if sample.split != "test"))


def check_initial_loss(prepared: Prepared) -> str:
    """Return a sentence comparing the loss before the first step with that of a guess."""
    feeder, phase = Feeder(prepared, on_event=ignore), prepared.phases[0]
    objective = objective_of(prepared.manifest.task, prepared.scale)
    with computing(prepared.compute), freezing(
        prepared.backbone.model, phase.plan, prepared.backbone.groups
    ) as hold:  # fmt: skip
        work = feeder.work_of(phase)
        hold(work.run)
        assert work.val is not None  # a search has val
        outputs, targets = collect_logits(work.run, work.val.epoch(), autocast=prepared.compute.autocast)
    seen = objective.seen(targets)
    loss = float(objective.loss(outputs.double(), seen.double() if seen.is_floating_point() else seen))
    guess = guess_loss(prepared.manifest.task, len(prepared.manifest.classes))
    name = {"classify": f"ln {len(prepared.manifest.classes)}", "multilabel": "ln 2", "regress": "the variance"}
    text = f"initial loss {loss:.3f}, guessing gives {guess:.3f} ({name[prepared.manifest.task]})"
    if loss > OFF * guess:
        return f"{text}: the head starts out sure and wrong; see strategy.initialiser and data.statistics"
    return f"{text}: as expected"


def check_overfit(recipe: Recipe, manifest: Manifest, *, stop: Stop, on_event: OnEvent) -> str:
    """Return a sentence: some images can be memorised without augmentation and decay, or what may be wrong."""
    small = _few(manifest)
    plain = recipe.model_copy(update={"augment": AugmentSection(level="none"), "regularise": RegulariseSection()})
    plain = recipes.update(
        plain,
        {
            "train.epochs": EPOCHS, "train.batch_size": 5, "train.balance": "none", "train.patience": "none",
            "optim.weight_decay": 0.0, "optim.schedule": "constant", "optim.warmup": 0.0, "loss.label_smoothing": 0.0,
        },
    )  # fmt: skip
    rows: list[EpochLine] = []

    def goes_on(history: Sequence[EpochLine]) -> bool:
        rows[:] = history
        return not _is_known(history[-1])

    with suppress(LeftBehindError):
        tried(plain, small, goes_on=goes_on, stop=stop, on_event=on_event)
    num = counted(len(small.split("train")), "image")
    last = rows[-1]
    if _is_known(last):
        return f"{num} are memorised after {counted(len(rows), 'epoch')}: the network can learn this"
    reached = f"loss {last.train_loss:.3f}" if last.train_top1 is None else f"top1 {last.train_top1:.2f}"
    return (
        f"{num} are not memorised after {counted(len(rows), 'epoch')} ({reached}): too low a learning rate, labels"
        " that contradict each other (`finetune check`), or frozen layers that do not see what separates the classes"
    )


def check_rates(prepared: Prepared, *, on_event: OnEvent) -> str:
    """Return a sentence on the rates at which the loss falls within a hundred steps."""
    with computing(prepared.compute):
        curve = curve_for(prepared, on_event=on_event)
    if curve.suggested is None or curve.steepest is None:
        return "the loss falls at no rate within 100 steps: check the data and the loss before a search"
    lowest = curve.rates[curve.smoothed.index(min(curve.smoothed))]
    at = f"steepest at rate {curve.steepest:.2g}, lowest at {lowest:.2g}"
    return f"the loss falls within {counted(len(curve.rates), 'step')}: {at}; suggested {curve.suggested:.2g}"


def _is_known(row: EpochLine) -> bool:
    if row.train_top1 is not None:
        return row.train_top1 == 1.0
    return row.train_loss is not None and row.train_loss < KNOWN_LOSS


def _few(manifest: Manifest) -> Manifest:
    """Return data with a few train images, of each class in turn; val stays, but does not count."""
    queues: dict[tuple[int, ...], list[Sample]] = {}
    for sample in manifest.split("train"):
        queues.setdefault(sample.target.classes, []).append(sample)
    chosen: list[Sample] = []
    while len(chosen) < SMALL and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < SMALL:
                chosen.append(queue.pop(0))
    names = {sample.file for sample in chosen}
    kept = tuple(s for s in manifest.samples if s.split != "train" or s.file in names)
    return replace(manifest, samples=kept)
