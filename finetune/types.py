"""The records that pass between the rooms: plain, frozen, free of torch.

Words: a *layer group* is the unit that is frozen or trained; a *freeze plan* says what each one
does; a *phase* is a stretch of training under one freeze plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal, Protocol

from finetune.bands import COLOURS, Bands, Depth, bands_of
from finetune.tasks import BETWEEN_LABELS, AnyTarget, Quantity, Task
from finetune.tasks import Target as Target

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image; `file` is relative to the manifest's root, `digest` hashes its bytes."""

    file: str
    target: AnyTarget
    split: Split | None = None
    group: str | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """An image that was left out, and why: for its file, or for what its row (in a shard what is beside it) says."""

    file: str
    reason: str
    is_of_row: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A data set: where it lies, its class names by index, its samples, and what was left out.

    `value_range` is what is black and what is white in its images deeper than 8 bits, where it has any. With
    `is_tree` an image that lies in several class folders has all of their classes.
    """

    root: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    task: Task = "classify"
    is_tree: bool = False
    bands: Bands = COLOURS

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Return the samples of one split, in the order of the manifest."""
        return tuple(sample for sample in self.samples if sample.split == name)

    def counts(self, split: Split | None = None) -> dict[str, int]:
        """Return the number of images of every class, by name."""
        counts = dict.fromkeys(self.classes, 0)
        for sample in self.samples:
            if split is None or sample.split == split:
                for index in sample.target.classes:
                    counts[self.classes[index]] += 1
        return counts

    def label(self, target: AnyTarget) -> str:
        """Return a target as files have it: the class, the classes joined by |, or the number."""
        if isinstance(target, Quantity):
            return repr(target.value)
        return BETWEEN_LABELS.join(self.classes[index] for index in target.classes)


BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue, as in ITU-R BT.601 and Pillow's "L"
FIVE_CROPS_PCT = 0.875  # of the shorter side is what each of five crops shows, at most
LONGEST = 16  # times its shorter side is kept of a strip: enlarged, all of it would fill the memory


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What turns an image into the backbone's input; the same in training, evaluation and prediction.

    `image_size` is (height, width) in pixels, `mean` and `std` are for values between 0 and 1, a number for each
    channel, `crop_pct` is the share of the resized image that the central crop shows. `value_range` is what is
    black and what is white in images deeper than 8 bits; nothing of them is lost where the `depth` is "full".
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    value_range: tuple[float, float] | None = None
    channels: int = 3
    depth: Depth = 8

    @property
    def bands(self) -> Bands:
        """How images are decoded and varied."""
        return bands_of(self.channels, self.depth)

    @property
    def border(self) -> tuple[float, ...]:
        """The colour of what lies outside of an image, between 0 and 1: the mean."""
        return self.mean * 3 if self.bands.count > len(self.mean) else self.mean


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Parameters that are frozen or trained together; the groups stand in order from input to output."""

    name: str
    parameters: tuple[str, ...]
    num_parameters: int
    is_head: bool = False
    kinds: tuple[Kind, ...] = ()  # of the parameters, in their order
    shapes: tuple[tuple[int, ...], ...] = ()

    def moved(self, trains: Trains) -> tuple[str, ...]:
        """Return the parameters that change when this much of the group is trained."""
        if trains in ("none", "all"):
            return self.parameters if trains == "all" else ()
        return tuple(name for name, kind in zip(self.parameters, self.kinds, strict=True) if kind in MOVES[trains])

    def num_trained(self, plan: GroupPlan) -> int:
        """Return how many numbers the optimiser moves in the group under its plan."""
        if plan.trains == "all":
            return self.num_parameters
        shapes = dict(zip(self.parameters, self.shapes, strict=True)) if self.shapes else {}
        moved = [shapes[name] for name in self.moved(plan.trains)]
        if plan.trains == "lora":
            return sum(lora_rank(shape, plan.rank) * (shape[0] + prod(shape[1:])) for shape in moved)
        return sum(map(prod, moved))


Kind = Literal["matrix", "bias", "norm weight", "norm bias", "other"]  # matrix: of a linear or convolution layer
Trains = Literal["none", "all", "norm", "bias", "lora"]
MOVES: dict[str, tuple[Kind, ...]] = {
    "norm": ("norm weight", "norm bias"),
    "bias": ("bias", "norm bias"),
    "lora": ("matrix",),
}


def lora_rank(shape: tuple[int, ...], rank: int) -> int:
    """Return the rank of what is added to a matrix: never more than it can have."""
    return min(rank, shape[0], prod(shape[1:]))


NormStatistics = Literal["frozen", "updated"]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What one layer group does in one phase."""

    group: str
    trains: Trains
    is_reinitialised: bool = False
    lr_scale: float = 1.0
    norm_statistics: NormStatistics = "frozen"
    rank: int = 0  # of lora

    @property
    def is_frozen(self) -> bool:
        return self.trains == "none"


@dataclass(frozen=True, slots=True)
class FreezePlan:
    """What every layer group does in one phase, in the order of the groups."""

    groups: tuple[GroupPlan, ...]

    def __getitem__(self, group: str) -> GroupPlan:
        return next(plan for plan in self.groups if plan.group == group)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(plan.group for plan in self.groups if not plan.is_frozen)

    @property
    def frozen(self) -> tuple[str, ...]:
        return tuple(plan.group for plan in self.groups if plan.is_frozen)


Solver = Literal["gradient", "lbfgs"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training under one freeze plan.

    `solver` is "gradient" (epochs of mini-batches at peak learning rate `lr`) or "lbfgs" (the head
    is solved to convergence on features of plain images; `epochs` is 0 then). `stop_after` ends it after
    so many epochs, on the schedule of all of them.
    """

    name: str
    plan: FreezePlan
    epochs: int
    lr: float
    solver: Solver = "gradient"
    stop_after: int | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


MOST_RANKED = 1000  # images of train that backbones are ranked on
FEWEST_PROBED = 4  # images: with fewer nothing is known of how well classes are told apart


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to learn from; `gain` is what a probe gains from 50 % to 100 % of the images probed."""

    num_images: int
    num_classes: int
    images_per_class_min: int
    images_per_class_median: float
    imbalance: float  # the largest class over the smallest
    num_probed: int
    gain: Interval
    num_independent: int | None = None  # copies and groups count once, as in the images per class; None: all are
    num_classes_probed: int | None = None  # where there are very many classes, some are drawn; None: all are


@dataclass(frozen=True, slots=True)
class Confidence:
    """What the backbone's own classifier makes of the images: mean largest probability, and mean entropy
    as a share of that of a guess."""

    top: float
    entropy: Interval


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured about a data set under a backbone before training.

    `probe` holds, for every tapped layer group, the leave-one-out top-1 of a linear classifier on its
    pooled features, `joint` that on all of them side by side; of another task its `measure`, mAP or R2, of which a
    guess has `chance`. `behind` is how far the last group lies behind the best one, on the same images. `spread` is
    the scatter of the class means over that within the classes, in the features of the last group: small where
    classes are fine.
    `shift` is how far the inputs of batch norm lie from the stored statistics, in stored deviations:
    the mean over the layer groups, and `shifts` of each.
    """

    size: Size
    probe: dict[str, Interval]
    joint: Interval
    behind: Interval
    spread: float
    logme: float
    shift: Interval | None = None
    shifts: dict[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None
    short_side: float | None = None  # the median over the images, in pixels
    grey_share: float | None = None
    measure: str = "top1"
    chance: float | None = None  # None: that of the number of classes

    @property
    def of_a_guess(self) -> float:
        """What a guess reaches of what the probe is measured by."""
        return 1 / self.size.num_classes if self.chance is None else self.chance

    @property
    def last(self) -> str:
        """The last layer group that was probed."""
        return list(self.probe)[-1]

    @property
    def best(self) -> str:
        """The layer group with the best probe; of equals, the later one."""
        names = list(self.probe)
        return max(names, key=lambda name: (self.probe[name].value, names.index(name)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cell of the strategy matrix, the strategy with its numbers, and the sentence why.

    `size_score` and `similarity_score` are what the cell was told from; above 0 is many, and similar.
    """

    size: Literal["few", "many"]
    similarity: Literal["similar", "dissimilar"]
    strategy: str
    reason: str
    size_score: Interval
    similarity_score: Interval
    top_k: int | None = None
    probe_at: str | None = None
    rival: str | None = None  # the dearer of both, where the column is not certain

    @property
    def line(self) -> str:
        """What auto decided and why, in one line."""
        return f"auto: {self.reason}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on the way, for whoever draws it: a kind and its facts.

    Kinds: "message" (text), "warning" (text), "progress" (task, done, total), "phase" (index, total,
    name, epochs, trained), "step" (epoch, step, steps, loss, images_per_second), "epoch" (a metrics line),
    "timing" (phase, epoch, seconds of its steps, seconds waited for batches), "trial" (study, number, params, state,
    score, loss, curve, reason, count).
    """

    kind: Literal["message", "warning", "progress", "phase", "step", "epoch", "timing", "trial"]
    facts: dict[str, Any]

    @classmethod
    def message(cls, text: str) -> Event:
        """Return something that was done or decided."""
        return cls("message", {"text": text})

    @classmethod
    def warning(cls, text: str) -> Event:
        """Return something that a user may not expect."""
        return cls("warning", {"text": text})

    @classmethod
    def progress(cls, task: str, done: int, total: int | None) -> Event:
        """Return how far a task is; without a total, its end is unknown."""
        return cls("progress", {"task": task, "done": done, "total": total})


@dataclass(frozen=True, slots=True)
class EpochLine:
    """An epoch as a line of metrics.jsonl; without val its numbers of val are None.

    Tasks other than classification have no top1: `scores` holds what val says of them, what epochs are judged by first.
    """

    phase: str
    epoch: int
    lr: float
    train_loss: float | None
    train_top1: float | None
    val_loss: float | None
    val_top1: float | None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """What the epoch is judged by on val; more is better."""
        return next(iter(self.scores.values()), self.val_top1)


OnEvent = Callable[[Event], None]


class StopSign(Protocol):
    """Whether to leave what is being computed: asked at each place where it can be left."""

    def raise_if_asked(self, save: Callable[[], None] | None = None) -> None:
        """Leave, if that is asked, after what must not be lost was saved.

        Raises:
            Interrupted: a signal came.
        """


class _NeverAsked:
    def raise_if_asked(self, save: Callable[[], None] | None = None) -> None:
        pass


NEVER: StopSign = _NeverAsked()


def ignore(event: Event) -> None:
    """Take an event and do nothing: the default for callers who do not watch."""


def to_json(record: Any) -> Any:
    """Return a record as plain dicts, lists and numbers."""
    return asdict(record)
