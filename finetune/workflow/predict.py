"""Classes for images without labels, from a finished run, an ONNX file or a timm folder.

If a run has a proven ONNX export, commands compute with that, without importing torch.
Letters: B batch, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from finetune.arguments import typed
from finetune.data.asked_images import Images, asked_images
from finetune.data.given_images import given_images, is_stream
from finetune.data.image_column import AUTO
from finetune.errors import RecipeError, check_count
from finetune.evaluation.named import Named, Predictions
from finetune.evaluation.named import Prediction as Prediction
from finetune.evaluation.prediction_rows import AnswerLayout
from finetune.evaluation.predictions import Answers, Scorer, check_asked, predictions, probabilities_of
from finetune.evaluation.views import Tta, check_cut, check_tta
from finetune.runs.answering import By, Model, chosen_export, open_model, opened_export, scorer_of
from finetune.tasks import TASKS, Task
from finetune.types import OnEvent, ignore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from finetune.checkpoint.saved import SavedRun
    from finetune.data.given_images import GivenImages, OneImage
    from finetune.features.knowledge import Knowledge

COVERAGE = 0.95  # share of val that is answered if unsure images are to be marked
Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to say of every image, besides what is likeliest."""

    top: int = 1
    scores: bool = False  # the probability of every class
    features: bool = False  # what reaches the head
    coverage: float | None = None  # the share of val that is to be answered: others are unsure
    threshold: float | None = None  # the probability below which the model is unsure
    tta: Tta = "none"  # over which views the answer is the mean

    def __post_init__(self) -> None:
        check_count("top", self.top)
        if self.coverage is not None:
            check_coverage(self.coverage)
        check_tta(self.tta)
        if self.tta != "none" and self.needs_model:
            raise RecipeError(
                f"{self.needs_model} uses the features of the image itself, but --tta a mean over views",
                hint="Leave one of them out.",
            )

    @property
    def needs_model(self) -> str:
        """The flag that asks for what no export gives, or ""."""
        return "--unsure" if self.coverage is not None else "--features" if self.features else ""

    def layout(self, task: Task, classes: tuple[str, ...]) -> AnswerLayout:
        """Return what a model of a task says of every image."""
        has_unsure = self.coverage is not None or self.threshold is not None
        return AnswerLayout(task, classes, self.top, self.scores or task == "multilabel", self.features, has_unsure)


class Stream(Iterator[Prediction]):
    """Predictions as they come, in the order of the images; `total` is None where their number is unknown."""

    def __init__(self, layout: AnswerLayout, total: int | None, named: Iterator[Named]) -> None:
        self.layout, self.total = layout, total
        self._named = named

    def __next__(self) -> Prediction:
        return next(self._named).prediction

    def collected(self) -> Predictions:
        """Return all remaining predictions."""
        return Predictions(self.layout, self._named)


class Classifier:
    """A finished run, ready to name what images show."""

    def __init__(self, saved: SavedRun, *, batch_size: int = 32) -> None:
        check_count("batch_size", batch_size)
        self.run = saved.folder.path
        self.classes = saved.classes
        self.task = saved.task
        self.thresholds = saved.thresholds
        self.model = saved.backbone.model
        self.preprocessing = saved.backbone.preprocessing
        self.bands = self.preprocessing.bands
        self.batch_size = batch_size
        self._compute = saved.compute
        self._folder = saved.folder

    def __repr__(self) -> str:
        kind = f"of {len(self.classes)} classes" if self.task != "regress" else "of a number"
        return f"<Classifier {kind} from {self.run} on {self._compute.device}>"

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: Iterator[OneImage], *, top: int = ..., scores: bool = ..., features: bool = ...,
        coverage: float | None = ..., threshold: float | None = ..., tta: Tta = ..., column: str = ...,
        on_event: OnEvent = ...,
    ) -> Stream: ...  # fmt: skip

    @overload
    def predict(
        self, images: GivenImages, *, top: int = ..., scores: bool = ..., features: bool = ...,
        coverage: float | None = ..., threshold: float | None = ..., tta: Tta = ..., column: str = ...,
        on_event: OnEvent = ...,
    ) -> Predictions: ...  # fmt: skip

    @typed
    def predict(
        self,
        images: Any,
        *,
        top: int = 1,
        scores: bool = False,
        features: bool = False,
        coverage: float | None = None,
        threshold: float | None = None,
        tta: Tta = "none",
        column: str = AUTO,
        on_event: OnEvent = ignore,
    ) -> Predictions | Stream:
        """Return a prediction for every image, in order; for a generator, an iterator that holds a few batches.

        Images are paths (files, folders, patterns, tables with a `column` of them, addresses), Pillow images, arrays
        (H, W, 3) or (H, W) of uint8, tensors (3, H, W) of uint8 or of floats from 0 to 1, bytes of image files, open
        files, or a list or a generator of these; where the model sees other channels, arrays (H, W, C) and tensors
        (C, H, W) of the numbers that its files have. With `scores` each has the probability of every class, with
        `features` what reaches the head. With `coverage`, the share of val to answer, or `threshold`, a
        probability, `unsure` says why the model is unsure of an image. With `tta` "flip" an answer is the mean over an
        image and its mirror image, with "5crop" over its corners and its middle.

        Raises:
            DataError: a path does not exist, there are no images, or it cannot be told how one is to be read.
            RecipeError: what is asked for does not go with the task.
            CheckpointError: of a coverage: the run cannot tell.
        """
        wanted = Wanted(top, scores, features, coverage, threshold, tta)
        given = given_images(images, column=column, bands=self.bands, on_event=on_event)
        stream = self._stream(given, wanted, on_event)
        return stream if is_stream(images) else stream.collected()

    def _stream(self, images: Images, wanted: Wanted, on_event: OnEvent) -> Stream:
        layout = wanted.layout(self.task, self.classes)
        scorer = self._scorer(wanted)
        check_asked(scorer, layout, wanted.threshold)
        return Stream(layout, images.total, self._named(scorer, images, layout, wanted, on_event))

    def _named(
        self, scorer: Scorer[Any], images: Images, layout: AnswerLayout, wanted: Wanted, on_event: OnEvent
    ) -> Iterator[Named]:
        with self._guarded():
            yield from predictions(
                scorer, images, layout, batch_size=self.batch_size, threshold=wanted.threshold, on_event=on_event
            )

    def _guarded(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of the computing library into ours."""
        from finetune.train.guard import OF_A_MODEL, guarded

        return guarded(OF_A_MODEL, is_shared=True)

    def _scorer(self, wanted: Wanted) -> Scorer[Any]:
        from finetune.images.transforms import five_crops_view, plain_view
        from finetune.runs.known_file import read_known

        known = None if wanted.coverage is None else read_known(self._folder)
        own = self.preprocessing
        check_cut(wanted.tta, crop_mode=own.crop_mode)
        view = five_crops_view(own) if wanted.tta == "5crop" else plain_view(own)
        answers = partial(self._answers, known=known, wanted=wanted)
        return Scorer(self.classes, own.value_range, view, answers, self.task, self.thresholds, own.bands)

    def _answers(self, images: Sequence[Tensor], *, known: Knowledge | None, wanted: Wanted) -> Answers:
        import torch

        from finetune.evaluation.forward import over_views
        from finetune.images.transforms import normalise

        batch = torch.stack(list(images)).to(self._compute.device)
        with self._compute.in_force(), torch.no_grad(), self._compute.autocast():
            inputs = normalise(batch, self.preprocessing)
            if not wanted.needs_model:
                logits = over_views(self.model, wanted.tta)(inputs).float().cpu()  # (B, K)
                return Answers(self._probabilities(logits))
            from finetune.backbone.groups import head_modules
            from finetune.features.extract import with_output

            look = with_output(self.model, head_modules(self.model)[0])
            reaching, logits = (tensor.float().cpu() for tensor in look(inputs))  # (B, D), (B, K)
        found = Answers(self._probabilities(logits), features=reaching.numpy() if wanted.features else None)
        if known is None or wanted.coverage is None:
            return found
        confidence = logits.double().softmax(dim=1).amax(dim=1).numpy()
        return replace(found, unsure=known.reasons(known.near(reaching), confidence, coverage=wanted.coverage))

    def _probabilities(self, logits: Tensor) -> NDArray[np.float32]:  # (B, K)
        if self.task == "classify":
            shares: NDArray[np.float32] = logits.softmax(dim=1).numpy()
            return shares
        return probabilities_of(TASKS[self.task].activation, logits.numpy())


class OnnxClassifier(Classifier):
    """An ONNX file of ours, that of an ensemble or of a folder of exports, ready to name what images show on a CPU.

    It has no `model` in torch, and no `preprocessing` but in the file's metadata.
    """

    def __init__(self, found: Model, file: Path, *, batch_size: int = 32) -> None:
        check_count("batch_size", batch_size)
        self.run, self.file, self.batch_size = found.path, file, batch_size
        self._found, self._client = found, opened_export(file)
        self.classes, self.task = tuple(self._client.classes), self._client.task
        self.thresholds, self.bands = self._client.thresholds, self._client.bands

    def __repr__(self) -> str:
        kind = f"of {len(self.classes)} classes" if self.task != "regress" else "of a number"
        return f"<Classifier {kind} from {self.file} by onnxruntime>"

    def _guarded(self) -> AbstractContextManager[None]:
        return nullcontext()  # there is no torch here

    def _scorer(self, wanted: Wanted) -> Scorer[Any]:
        if wanted.needs_model:
            _of_model(self._found, wanted, "onnxruntime")
        return scorer_of(self._client, tta=wanted.tta)


@typed
def load(run: str | Path, *, device: str = "auto", batch_size: int = 32) -> Classifier:
    """Load a model that names images: that of a finished run, an ensemble, an ONNX file or a folder of exports.

    A timm folder that names its classes works too. An ONNX file runs on a CPU.

    Raises:
        CheckpointError: nothing that can name images, or a run that did not come to its end.
        ExportError: an ONNX file of another tool, or not the one that was proven.
        RecipeError: an ONNX file on another device than a CPU.
    """
    found = open_model(run)
    if found.file is not None:
        chosen_export(found, "auto", device, num_images=None, on_event=ignore)
        return OnnxClassifier(found, found.file, batch_size=batch_size)
    from finetune.checkpoint.saved import load_run, load_timm
    from finetune.train.guard import OF_A_MODEL, guarded

    with guarded(OF_A_MODEL, is_shared=True):
        saved = load_timm(run, device=device) if found.is_timm else load_run(run, device=device)
        return Classifier(saved, batch_size=batch_size)


def predict_with(
    run: str | Path,
    paths: Paths,
    *,
    wanted: Wanted | None = None,
    device: str = "auto",
    batch_size: int = 32,
    engine: By = "auto",
    column: str = AUTO,
    stdin: BinaryIO | None = None,
    on_event: OnEvent = ignore,
) -> Stream:
    """Return a stream of predictions for images by name (see `asked_images`), by the quickest way available.

    That is an ONNX file or that of an ensemble; of a run its ONNX export, if it was proven equal to the model that
    stands there; else, or on a GPU that many images are worth, the model itself. `engine` names one of the two:
    "onnxruntime" or "torch". What no export gives (see `Wanted.needs_model`) the model does.

    Raises:
        CheckpointError: nothing that can name images. DataError: a path does not exist, or there are no images.
        ExportError: the export is asked for by its engine, and there is none that is proven.
        RecipeError: what is asked for does not go with what answers.
    """
    wanted = wanted or Wanted()
    check_count("batch_size", batch_size)
    model = open_model(run)
    if wanted.needs_model:
        engine = _of_model(model, wanted, engine)
    images = asked_images(
        [paths] if isinstance(paths, (str, Path)) else paths, column=column, stdin=stdin, on_event=on_event
    )
    export = chosen_export(model, engine, device, num_images=images.total, on_event=on_event)
    if export is None:
        return load(run, device=device, batch_size=batch_size)._stream(images, wanted, on_event)
    return OnnxClassifier(model, export, batch_size=batch_size)._stream(images, wanted, on_event)


def _of_model(model: Model, wanted: Wanted, engine: By) -> By:
    """Return the engine for what needs the model itself.

    Raises:
        RecipeError: there is none here, or the other engine is asked for.
    """
    if model.file is not None and model.run is not None:
        what = "does not know what it is unsure of" if wanted.coverage is not None else "gives no features"
        raise RecipeError(
            f"{model.path} is an ensemble, which {what}",
            hint=f"Leave {wanted.needs_model}{' and --coverage' * (wanted.coverage is not None)} out,"
            " or ask its members one by one.",
        )
    if engine == "onnxruntime" or model.file is not None:
        hint = "Use --engine torch." if model.file is None else "Name the run that it was made from."
        raise RecipeError(f"{wanted.needs_model} asks for features, which an export does not give", hint=hint)
    return "torch"


def check_coverage(coverage: float) -> None:
    """Check a share of val that is to be answered.

    Raises:
        RecipeError: it is not above 0 and at most 1.
    """
    if not 0 < coverage <= 1:
        raise RecipeError(f"coverage = {coverage:g} is not a share of the images", hint="Give one above 0, up to 1.")
