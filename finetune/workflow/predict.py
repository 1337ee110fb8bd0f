"""Classes for images without labels, from a finished run.

Where the run has a proven ONNX export, a command computes with that: nothing of torch is imported then.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.checkpoint.run_folder import RunFolder, open_answering
from finetune.data.sources import image_files
from finetune.errors import ExportError, RecipeError, check_count, did_you_mean
from finetune.evaluation.predictions import Prediction as Prediction
from finetune.evaluation.predictions import Scorer, check_top, predictions, probabilities_of
from finetune.exports.client import Client, export_file, of_image, proven_export
from finetune.tasks import TASKS
from finetune.types import Event, OnEvent, ignore

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.checkpoint.saved import SavedRun

MANY = 1000  # images that are worth starting a GPU
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

    def predict(
        self, paths: str | Path | Iterable[str | Path], *, top: int = 1, on_event: OnEvent = ignore
    ) -> list[Prediction]:
        """Return a prediction for every image among files and in folders, in order.

        Raises:
            DataError: a path does not exist, or there are no images.
        """
        check_count("top", top)
        check_top(self.task, top)
        return list(self._named(_files(paths, on_event), top, on_event))

    def _named(self, files: Sequence[Path], top: int, on_event: OnEvent) -> Iterator[Prediction]:
        from finetune.train.guard import OF_A_MODEL, guarded

        with guarded(OF_A_MODEL, is_shared=True):
            yield from predictions(self._scorer(), files, top=top, batch_size=self.batch_size, on_event=on_event)

    def _scorer(self) -> Scorer[Tensor]:
        from finetune.images.transforms import plain_view

        view = plain_view(self.preprocessing)
        value_range = self.preprocessing.value_range
        return Scorer(self.classes, value_range, view, self._probabilities, self.task, self.thresholds)

    def _probabilities(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        import torch

        from finetune.images.transforms import normalise

        batch = torch.stack(list(images)).to(self._compute.device)
        with self._compute.in_force(), torch.no_grad(), self._compute.autocast():
            logits = self.model(normalise(batch, self.preprocessing))  # (B, K)
        if self.task == "classify":
            probabilities: NDArray[np.float32] = logits.float().softmax(dim=1).cpu().numpy()
            return probabilities
        return probabilities_of(TASKS[self.task].activation, logits.float().cpu().numpy())


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
    on_event: OnEvent = ignore,
) -> Iterator[Prediction]:
    """Yield a prediction for every image among files and in folders, in order, by what is quickest at hand.

    That is the file of an ensemble; of a run its ONNX export, if it was proven equal to the model that stands there;
    else, or on a GPU that many images are worth, the model itself. `engine` names one of the two: "onnxruntime" or
    "torch".

    Raises:
        CheckpointError: no finished run. DataError: a path does not exist, or there are no images.
        ExportError: the export is asked for by its engine, and there is none that is proven.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    folder = open_answering(run)
    files = _files(paths, on_event)
    if folder.ensemble.is_file():
        export: Path | None = _ensemble_of(folder, engine, device)
    else:
        export = _export_of(folder, engine, is_for_processor=_is_for_processor(device, len(files)), on_event=on_event)
    if export is None:
        classifier = load(run, device=device, batch_size=batch_size)
        check_top(classifier.task, top)
        yield from classifier._named(files, top, on_event)
    else:
        scorer = _exported(export)
        check_top(scorer.task, top)
        yield from predictions(scorer, files, top=top, batch_size=batch_size, on_event=on_event)


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

    def probabilities(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return probabilities_of(client.activation, client.run(np.stack(images)))

    span = tuple(value_range) if value_range else None
    return Scorer(tuple(client.classes), span, prepare, probabilities, client.task, client.thresholds)
