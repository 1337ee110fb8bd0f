"""The recipe: every setting of a run with its type, range, default and one line of help.

A section is a table of the TOML file, a field is a key in it; `--set section.key=value` reaches
each one. "auto" means that the tool decides (and writes what it decided into the run folder),
"none" that there is none. No torch in here: `finetune --help` reads it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.bands import MOST_CHANNELS, Bands, Depth, bands_of
from finetune.sections import AugmentSection, RegulariseSection
from finetune.values import (
    STRATEGY_NAMES,
    Assumption,
    Auto,
    Count,
    EngineName,
    Fraction,
    Initialiser,
    Loss,
    NoneWord,
    NotNegative,
    OptimiserName,
    Positive,
    Schedule,
    Section,
    Seed,
    Statistics,
    StrategyName,
    TaskName,
    Time,
    ValueRange,
    Warmup,
    Whole,
    size_first,
)  # fmt: skip

FORMAT_VERSION = 1  # of recipe, run folder and cache

DEFAULT_BACKBONE = "efficientnet_b0.ra4_e3600_r224_in1k"
EMBEDDED = "embedded"  # the backbone whose weights lie in this package
RANGE_TEST = "range-test"  # optim.lr: measured before the first step
ALL_STAGES = "all"  # strategy.probe_at: every layer group of the backbone together
JOIN = "+"  # between several
EMBEDDED_FULL = "mobilenetv2_075.embedded"  # its name in the catalogue


class DataSection(Section):
    path: str = Field(
        "", description="Folder of class folders, a CSV, TSV or Parquet file, or wds:FOLDER of tar shards."
    )
    layout: Auto | Literal["classes"] = Field(
        "auto",
        description="auto: folders named like splits are splits; folders that look like splits without saying which are"
        " refused. classes: the top folders are the classes, whatever they are called and hold.",
    )
    image_column: str = Field("image", description="Column of the image path in a table.")
    label_column: str = Field(
        "label",
        description="Column of a table with the class name, several classes, or a number. Several columns of 0 and 1,"
        " their names joined by commas, are one class each.",
    )
    task: TaskName = Field(
        "auto",
        description="classify: an image has one class; multilabel: any number of them; regress: a number. auto: by the"
        " labels of a table, with a line that says which; classify for folders.",
    )
    label_separator: Annotated[str, Field(min_length=1)] = Field(
        "auto", description="What separates the classes of one image in a label. auto: what is found, or |."
    )
    split_column: str = Field(
        "split", description="Column of a table that names the split, where there is one. none: ignore it."
    )
    group_by: str | NoneWord = Field(
        "none",
        description="Images of one group stay in one split: a column, or a regular expression on the"
        " path whose first bracket is the group (patient, video, burst).",
    )
    fit: Auto | Literal["crop", "pad", "squash"] = Field(
        "auto",
        description="How an image becomes a square in the plain view, which predict and exports share: crop shows its"
        " middle, pad all of it on a border, squash all of it out of shape. auto: as the backbone was trained.",
    )
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = Field(
        3,
        description="What the network sees of an image. 3: red, green, blue; 1: its brightness; 4: its four channels;"
        " another number: the channels of a .npy file (H, W, C) or a TIFF.",
    )
    depth: Auto | Depth = Field(
        "auto",
        description="8: a channel becomes 8 bits; full: it keeps all that the file has, as float32. auto: 8 for 1, 3 or"
        " 4 channels, else full.",
    )
    statistics: Auto | Literal["pretrained", "data", "min-max"] | Statistics = Field(
        "auto",
        description="What standardises pixels: the mean and deviation that the backbone was trained with, those of the"
        " train images, or their least and greatest value; or [[subtracted], [divided by]] for each channel. auto:"
        " pretrained; data with data.depth = full.",
    )
    value_range: ValueRange | Auto = Field(
        "auto",
        description="What is black and what is white in images deeper than 8 bits, e.g. [0, 4095]. auto: 0 and the"
        " greatest number of as many bits as the data fills.",
    )

    @property
    def bands(self) -> Bands:
        """How images are decoded."""
        return bands_of(self.channels, self.depth)


class SplitSection(Section):
    val: Fraction = Field(
        0.2, gt=0, description="Share of the images set aside for val, where the data has no val split."
    )
    test: Fraction = Field(0.0, description="Share set aside for test, where the data has no test split.")
    seed: Seed = Field(0, description="Seed of the split; independent of the seed of training.")
    folds: Annotated[int, Field(ge=2)] | NoneWord = Field(
        "none",
        description="Divide all but test into this many parts, one of which is val, in place of split.val; `finetune"
        " run --folds K` trains on each in turn.",
    )
    fold: Count = Field(1, description="folds: which of the parts is val.")


class BackboneSection(Section):
    name: str = Field(
        "auto",
        description="A timm name, hf-hub:OWNER/NAME, local-dir:FOLDER or embedded. auto: the architecture of"
        " backbone.weights, else the first of a short list that is on this machine or on the hub, else embedded.",
    )
    among: str | Auto | NoneWord = Field(
        "auto",
        description="Backbones to rank on the data, of which the best two or three race: names and folders, joined by"
        " commas; here: those of a short list whose weights are on this machine. auto: here, if train.time is given and"
        " no backbone; else none.",
    )
    weights: str | NoneWord = Field(
        "none", description="A timm folder, a .safetensors or a .pth file, in place of timm's own weights."
    )
    pretrained: bool = Field(True, description="Start from pretrained weights.")
    image_size: Annotated[int, Field(ge=8, le=4096)] | Auto = Field(
        "auto", description="Side of the square input in pixels. auto: the backbone's own."
    )
    pool: Auto | Literal["avg", "max", "avgmax", "catavgmax", "gem", "fractional"] = Field(
        "auto",
        description="How a convolutional network's last feature map becomes features: the mean, the maximum, the mean"
        " of both, both side by side; gem: a mean of trained powers; fractional: maxima of random regions, then the"
        " mean. auto: as the backbone was trained.",
    )
    model_args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of timm.create_model.")


class StrategySection(Section):
    name: StrategyName = Field(
        "auto",
        description=f"{', '.join(STRATEGY_NAMES)}. auto decides from the data, race lets the likeliest start.",
    )
    assume: Annotated[Assumption, BeforeValidator(size_first)] = Field(
        "none",
        description="auto, race: the size or similarity to assume instead of measuring it, e.g. few,similar.",
    )
    top_k: Whole | Auto = Field(
        "auto",
        description="top-k, lp-ft: the head and the last K layer groups of the backbone. auto: 1; with lp-ft all.",
    )
    probe_at: str | Auto = Field(
        "auto",
        description="linear-probe: the layer group whose output is classified, several joined by +, or all. auto: the"
        " last.",
    )
    whiten: Literal["none", "pca", "zca"] = Field(
        "none",
        description="linear-probe, lp-ft: whiten features before the head is solved; the whitening is folded into it.",
    )
    whiten_epsilon: Positive = Field(
        0.01, description="Share of the mean variance that is added to each direction's variance before dividing by it."
    )
    norm_statistics: Literal["auto", "frozen", "updated"] = Field(
        "auto",
        description="Means and variances of batch norm in layers that are trained: kept as pretrained, or updated by"
        " every batch. auto: frozen, but updated in what is re-initialised.",
    )
    lora_rank: Count = Field(16, description="lora: the rank of what is added to each matrix.")
    reinit: bool = Field(False, description="Re-initialise the retrained layers, not only the head.")
    initialiser: Initialiser = Field(
        "auto",
        description="Initial weights of linear and convolution layers that are re-initialised, the head's among them."
        " auto: the network's own. zero is for the head alone.",
    )


class TrainSection(Section):
    epochs: Count | Auto = Field("auto", description="Epochs of all phases together. auto: by strategy.")
    time: Time | NoneWord = Field(
        "none",
        description="Train no longer than this, as predicted on this machine: 90s, 20m, 1h30m. auto falls back to"
        " a cheaper strategy if its choice does not fit; a named one runs fewer epochs, or refuses.",
    )
    batch_size: Count | Auto = Field(
        "auto",
        description="Images per step, in all processes together. auto: by the number of train images: 8, 16, 32 or 64.",
    )
    micro_batch: Count | Auto = Field(
        "auto",
        description="Images that go through the network at once, in each process; fewer than batch_size means that"
        " gradients are accumulated. auto: all of them, or as many as memory takes.",
    )
    workers: Whole | Auto = Field("auto", description="Processes that decode images. auto: by cores and data size.")
    threads: Count | Auto = Field(
        "auto",
        description="CPU threads that compute. auto: one per core, or fewer while other work makes them wait for each"
        " other. Another number gives other last bits; a run that is resumed keeps its own.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Arithmetic of the forward pass. auto: bfloat16 on a GPU that computes in it "
        "(not emulates), else float32.",
    )
    fold_norms: bool | Auto = Field(
        "auto",
        description="Compute a batch norm whose statistics stand still together with the convolution before it while"
        " training: the same gradients but for the last bits, in less time and memory. auto: on a CPU.",
    )
    balance: Auto | Literal["weights", "sampling", "none"] = Field(
        "auto",
        description="Classes of different size: weights lets each image of a small class count for more, sampling draws"
        " it more often. auto: weights, if the largest class has at least three times the images of the smallest.",
    )
    calibrate: bool | Auto = Field(
        "auto",
        description="Divide logits, in the head, by a temperature chosen on val, so that confidence matches accuracy;"
        " the fewer images val has, the more it is pulled towards what is usual after such training. auto: if the head"
        " is one layer.",
    )
    track: str | NoneWord = Field(
        "none",
        description="Experiment trackers that are told each epoch and the metrics: tensorboard, mlflow, wandb or"
        " trackio, several joined by commas. Each needs its package.",
    )
    refit: bool = Field(
        False,
        description="Train once more on train and val with the chosen numbers, and deliver that model; val can no"
        " longer measure it.",
    )
    seed: Seed = Field(0, description="Seed of all that is random in training.")
    deterministic: bool = Field(False, description="Deterministic kernels on a GPU too; slower.")
    patience: Count | NoneWord = Field("none", description="Stop after this many epochs without a better val.")
    patience_by: Literal["score", "loss"] = Field("score", description="patience: top1 (mAP, R2) on val, or its loss.")
    least_gain: NotNegative = Field(0.0, description="patience: by how much val must be better to count as better.")
    checkpoint_every: Positive | NoneWord = Field(
        "none",
        description="Minutes between checkpoints inside an epoch. One is written after every epoch anyway, after quick"
        " ones every two seconds.",
    )


class OptimSection(Section):
    name: OptimiserName = Field("adamw", description="Optimiser; sgd has no momentum, nesterov and momentum have 0.9.")
    lr: Positive | Auto | Literal["range-test"] = Field(
        "auto",
        description="Peak learning rate, of the head. auto: by strategy and optimiser; range-test: measured on the data"
        " before the first step, as `finetune find-lr` does.",
    )
    head_lr: Positive = Field(1.0, description="Factor on the learning rate of the head alone.")
    momentum: Fraction | Auto = Field("auto", description="Of momentum, nesterov and rmsprop. auto: 0.9; rmsprop 0.")
    momentum_from: Fraction | NoneWord = Field(
        "none", description="Momentum, or Adam's first beta, at the first step, from which it moves to optim.momentum."
    )
    weight_decay: NotNegative | Auto = Field(
        "auto",
        description="Weight decay, not on norms and biases: decoupled with adamw, nadamw, lion, lamb and muon, else L2."
        " auto: by strategy.",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Auto = Field(
        "auto",
        description="Factor on the learning rate for every layer group further from the head. auto: by strategy.",
    )
    schedule: Schedule = Field("cosine", description="Learning rate after warm-up.")
    warmup: Fraction | Warmup | Auto = Field(
        "auto",
        description="Steps of a phase in which the learning rate rises: a share of them, or '2 epochs', '100 steps'."
        " auto: 0.1, with one-cycle 0.3.",
    )
    drop: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.1, description="step, plateau: what the learning rate is multiplied by."
    )
    drop_every: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        1 / 3, description="step: after which share of the steps."
    )
    drop_patience: Count = Field(3, description="plateau: after how many epochs without a lower val loss.")
    power: Positive = Field(1.0, description="polynomial: 1 falls in a line, 2 faster at first.")
    clip: Positive | NoneWord = Field(1.0, description="Largest norm of the gradient.")
    sam: NotNegative = Field(
        0.0,
        description="Sharpness-aware: the gradient is taken this far uphill, in a second pass. 0: off; usual: 0.05.",
    )


class LossSection(Section):
    name: Loss = Field(
        "auto",
        description="nll: cross-entropy without smoothing; bce: each class by itself; mse: squared distance of the"
        " probabilities, or of numbers; focal: cross-entropy with less weight on images that are confidently"
        " right; asymmetric: bce with less weight on classes that an image surely lacks; huber: mse with less weight on"
        " outliers. auto: cross-entropy; bce for several classes, mse for numbers.",
    )
    focal_gamma: NotNegative = Field(2.0, description="How much less; 0 is cross-entropy.")
    label_smoothing: Fraction | Auto = Field(
        "auto",
        description="Share of the target spread over all classes. auto: 0.1 for cross-entropy under top-k with two"
        " or more layer groups of the backbone, else 0.",
    )

    @property
    def smoothing(self) -> float:
        """Share of the target that is spread; none as long as "auto" is not settled."""
        return 0.0 if self.label_smoothing == "auto" else self.label_smoothing


class CacheSection(Section):
    features: Literal["auto", "memory", "none"] = Field(
        "auto",
        description="Run frozen layers once for each image and keep what they yield. auto: on disk, for later runs"
        " too; memory: for this run; none: run them every epoch.",
    )
    engine: EngineName = Field(
        "auto",
        description="What runs frozen layers: torch as it is, torch with batch norms folded away, or another library."
        " auto: the fastest that is proven within 1e-4 of torch here, where that pays for building it.",
    )
    views: Count | Auto = Field(
        "auto",
        description="Views of every train image in the cache, the plain one and augmented ones. A head that is solved"
        " is solved on all of them. auto: 4.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="What is kept of a value; less than float32 halves the cache and is not exact."
    )
    pixels: Literal["auto", "none"] = Field(
        "auto", description="Keep decoded, resized images, so that each file is decoded once. auto: where they fit."
    )
    folder: str | Auto = Field(
        "auto", description="Where the cache lies. auto: the platform's cache folder, or FINETUNE_CACHE."
    )
    limit: Positive = Field(20.0, description="GiB that the cache may take; the least recently used go first.")


class ExportSection(Section):
    onnx_at_end: bool | Auto = Field(
        "auto",
        description="Leave a proven ONNX export in exports/, with which `finetune predict` answers without torch. auto:"
        " after runs that took 10 seconds or more, of which it is a small part.",
    )


class Recipe(Section):
    """The whole typed description of a run."""

    format_version: Literal[1] = Field(1, description="Version of this layout.")
    data: DataSection = Field(default_factory=DataSection, description="Where the images are.")
    split: SplitSection = Field(default_factory=SplitSection, description="How val and test are set aside.")
    backbone: BackboneSection = Field(default_factory=BackboneSection, description="The pretrained network.")
    strategy: StrategySection = Field(default_factory=StrategySection, description="What is trained.")
    train: TrainSection = Field(default_factory=TrainSection, description="How long, on what, with which seed.")
    optim: OptimSection = Field(default_factory=OptimSection, description="How weights move.")
    loss: LossSection = Field(default_factory=LossSection, description="What is minimised.")
    regularise: RegulariseSection = Field(
        default_factory=RegulariseSection, description="What keeps a network from learning its images by heart."
    )
    augment: AugmentSection = Field(default_factory=AugmentSection, description="How train images vary.")
    cache: CacheSection = Field(default_factory=CacheSection, description="What is computed once.")
    export: ExportSection = Field(default_factory=ExportSection, description="What is left for other programs.")


SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in Recipe.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}
