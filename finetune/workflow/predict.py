"""Classes for images without labels, from a finished run.

Where the run has a proven ONNX export, a command computes with that: nothing of torch is imported then.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.checkpoint.run_folder import RunFolder, open_answering
from finetune.data.sources import image_files
from finetune.errors import ExportError, RecipeError, check_count, did_you_mean
from finetune.evaluation.predictions import Answers, Scorer, check_top, predictions, probabilities_of
from finetune.evaluation.predictions import Prediction as Prediction
from finetune.exports.client import Client, export_file, of_image, proven_export
from finetune.tasks import TASKS
from finetune.types import Event, OnEvent, ignore

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.checkpoint.saved import SavedRun
    from finetune.features.knowledge import Knowledge

MANY = 1000  # images that are worth starting a GPU
COVERAGE = 0.95  # share of val that is answered where images that the model is unsure of are asked to be told
By = Literal["auto", "torch", "onnxruntime"]
Paths = str | Path | Iterable[str | Path]


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
        self.batch_size = batch_size
        self._compute = saved.compute
        self._folder = saved.folder

    def predict(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        top: int = 1,
        coverage: float | None = None,
        on_event: OnEvent = ignore,
    ) -> list[Prediction]:
        """Return a prediction for every image among files and in folders, in order.

        With a `coverage`, the share of val that may be named, images that had better not be say why in `unsure`.

        Raises:
            DataError: a path does not exist, or there are no images.
            CheckpointError: of a coverage: the run cannot tell.
        """
        check_count("top", top)
        check_top(self.task, top)
        known = self._known(coverage)
        return list(self._named(_files(paths, on_event), top, on_event, known=known, coverage=coverage))

    def _known(self, coverage: float | None) -> Knowledge | None:
        if coverage is None:
            return None
        from finetune.runs.known_file import read_known

        check_coverage(coverage)
        return read_known(self._folder)

    def _named(
        self,
        files: Sequence[Path],
        top: int,
        on_event: OnEvent,
        *,
        known: Knowledge | None = None,
        coverage: float | None = None,
    ) -> Iterator[Prediction]:
        from finetune.train.guard import OF_A_MODEL, guarded

        scorer = self._scorer(known, coverage or COVERAGE)
        with guarded(OF_A_MODEL, is_shared=True):
            yield from predictions(scorer, files, top=top, batch_size=self.batch_size, on_event=on_event)

    def _scorer(self, known: Knowledge | None, coverage: float) -> Scorer[Tensor]:
        from finetune.images.transforms import plain_view

        view = plain_view(self.preprocessing)
        own = self.preprocessing
        answers = partial(self._answers, known=known, coverage=coverage)
        return Scorer(self.classes, own.value_range, view, answers, self.task, self.thresholds, own.bands)

    def _answers(self, images: Sequence[Tensor], *, known: Knowledge | None, coverage: float) -> Answers:
        import torch

        from finetune.images.transforms import normalise

        batch = torch.stack(list(images)).to(self._compute.device)
        with self._compute.in_force(), torch.no_grad(), self._compute.autocast():
            inputs = normalise(batch, self.preprocessing)
            if known is None:
                logits = self.model(inputs).float().cpu()  # (B, K)
            else:
                from finetune.backbone.groups import head_modules
                from finetune.features.extract import with_output

                features, logits = (
                    tensor.float().cpu() for tensor in with_output(self.model, head_modules(self.model)[0])(inputs)
                )
        if self.task == "classify":
            probabilities: NDArray[np.float32] = logits.softmax(dim=1).numpy()
        else:
            probabilities = probabilities_of(TASKS[self.task].activation, logits.numpy())
        if known is None:
            return Answers(probabilities)
        confidence = logits.double().softmax(dim=1).amax(dim=1).numpy()
        return Answers(probabilities, known.reasons(known.near(features), confidence, coverage=coverage))


def load(run: str | Path, *, device: str = "auto", batch_size: int = 32) -> Classifier:
    """Load the best model of a finished run for prediction.

    Raises:
        CheckpointError: no run folder, or a run that did not come to its end.
    """
    from finetune.checkpoint.saved import load_run
    from finetune.train.guard import OF_A_MODEL, guarded

    with guarded(OF_A_MODEL, is_shared=True):
        return Classifier(load_run(run, device=device), batch_size=batch_size)


def predict_with(
    run: str | Path,
    paths: Paths,
    *,
    top: int = 1,
    device: str = "auto",
    batch_size: int = 32,
    engine: By = "auto",
    coverage: float | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[Prediction]:
    """Yield a prediction for every image among files and in folders, in order, by what is quickest at hand.

    That is the file of an ensemble; of a run its ONNX export, if it was proven equal to the model that stands there;
    else, or on a GPU that many images are worth, the model itself. `engine` names one of the two: "onnxruntime" or
    "torch". With a `coverage` (see `Classifier.predict`) the model answers, as no export has what it needs.

    Raises:
        CheckpointError: no finished run. DataError: a path does not exist, or there are no images.
        ExportError: the export is asked for by its engine, and there is none that is proven.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    folder = open_answering(run)
    if coverage is not None:
        check_coverage(coverage)
        if folder.ensemble.is_file():
            raise RecipeError(
                f"{folder.path} is an ensemble, which does not know what it is unsure of",
                hint="Leave --unsure and --coverage away, or ask its members one by one.",
            )
        if engine == "onnxruntime":
            raise RecipeError("--unsure asks for features, which an export does not give", hint="Use --engine torch.")
        engine = "torch"
    files = _files(paths, on_event)
    if folder.ensemble.is_file():
        export: Path | None = _ensemble_of(folder, engine, device)
    else:
        export = _export_of(folder, engine, is_for_processor=_is_for_processor(device, len(files)), on_event=on_event)
    if export is None:
        classifier = load(run, device=device, batch_size=batch_size)
        check_top(classifier.task, top)
        known = classifier._known(coverage)
        yield from classifier._named(files, top, on_event, known=known, coverage=coverage)
    else:
        scorer = _exported(export)
        check_top(scorer.task, top)
        yield from predictions(scorer, files, top=top, batch_size=batch_size, on_event=on_event)


def check_coverage(coverage: float) -> None:
    """See that a share of val that is to be answered is one.

    Raises:
        RecipeError: it is not above 0 and at most 1.
    """
    if not 0 < coverage <= 1:
        raise RecipeError(f"coverage = {coverage:g} is no share of the images", hint="Name one above 0, up to 1.")


def _files(paths: Paths, on_event: OnEvent) -> list[Path]:
    return image_files([paths] if isinstance(paths, (str, Path)) else list(paths), on_event=on_event)


def _ensemble_of(folder: RunFolder, engine: By, device: str) -> Path:
    """Return the file of an ensemble, which alone can answer."""
    export = proven_export(folder)
    if export is None:
        raise ExportError(
            f"{export_file(folder)} is not the file that was proven equal to its members",
            hint="Make the ensemble again: its members stand in ensemble.json.",
        )
    if engine == "torch" or device not in ("auto", "cpu"):
        raise RecipeError(
            f"{folder.path} is an ensemble: one ONNX file, which a CPU computes",
            hint="Leave --engine and --device away, or ask its members one by one.",
        )
    return export


def _export_of(folder: RunFolder, engine: By, *, is_for_processor: bool, on_event: OnEvent) -> Path | None:
    """Return the export that answers; None where the model does. One that is there and not used is named."""
    if engine not in get_args(By):
        raise RecipeError(
            f"engine = {engine!r} is none of {', '.join(get_args(By))}.{did_you_mean(engine, get_args(By))}"
        )
    if engine == "torch":
        return None
    export = proven_export(folder)
    anew = f"Prove it anew: finetune export {shlex.quote(str(folder.path))} --format onnx"
    if engine == "onnxruntime" and not is_for_processor:
        raise RecipeError("engine = 'onnxruntime' computes on a CPU", hint="Use --device cpu, or --engine torch.")
    if engine == "onnxruntime" and export is None:
        raise ExportError(f"{folder.path} has no ONNX export that is proven equal to its model", hint=f"{anew}.")
    if export is None and is_for_processor and export_file(folder).is_file():
        why = "is not proven equal to the model that stands there"
        on_event(Event.warning(f"{export_file(folder)} {why}: the model itself answers. {anew}"))
    return export if is_for_processor else None


def _is_for_processor(device: str, num_images: int) -> bool:
    """Tell without torch whether the processor may compute: a GPU is asked for nowhere, or not worth starting."""
    return device == "cpu" or (device == "auto" and (num_images < MANY or not Path("/dev/nvidiactl").exists()))


def _exported(file: Path) -> Scorer[NDArray[np.float32]]:
    client = Client(file)
    value_range = client.preprocessing["value_range"]

    def prepare(image: Image.Image) -> NDArray[np.float32]:
        return of_image(image, client.preprocessing)

    def answers(images: Sequence[NDArray[np.float32]]) -> Answers:
        return Answers(probabilities_of(client.activation, client.run(np.stack(images))))

    span = tuple(value_range) if value_range else None
    return Scorer(tuple(client.classes), span, prepare, answers, client.task, client.thresholds, client.bands)
