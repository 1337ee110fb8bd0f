"""Classes for images without labels, from a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.checkpoint.saved import SavedRun, load_run
from finetune.data.checks import remarks_of
from finetune.data.sources import image_files
from finetune.images.decode import UndecodableError, read
from finetune.images.depths import before_model
from finetune.images.levels import Span
from finetune.images.transforms import normalise, plain_view
from finetune.train.guard import OF_A_MODEL, check_count, guarded
from finetune.types import Event, OnEvent, ignore


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why it could not be read."""

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""

    @property
    def label(self) -> str:
        """The likeliest class; empty for an image that could not be read."""
        return self.classes[0] if self.classes else ""


class Classifier:
    """A finished run, ready to name what images show."""

    def __init__(self, saved: SavedRun, *, batch_size: int = 32) -> None:
        check_count("batch_size", batch_size)
        self.run = saved.folder.path
        self.classes = saved.classes
        self.model = saved.backbone.model
        self.preprocessing = saved.backbone.preprocessing
        self.batch_size = batch_size
        self._compute = saved.compute

    @guarded(OF_A_MODEL, is_shared=True)
    def predict(
        self, paths: str | Path | Iterable[str | Path], *, top: int = 1, on_event: OnEvent = ignore
    ) -> list[Prediction]:
        """Return a prediction for every image among files and in folders, in order.

        Raises:
            DataError: a path does not exist, or there are no images.
        """
        check_count("top", top)
        files = image_files([paths] if isinstance(paths, (str, Path)) else list(paths), on_event=on_event)
        found: list[Prediction] = []
        seen: list[tuple[str, Span | None, str]] = []  # of each image its file, span and remark
        for start in range(0, len(files), self.batch_size):
            with self._compute.in_force():
                found += self._batch(files[start : start + self.batch_size], min(top, len(self.classes)), seen)
            on_event(Event.progress("predict", len(found), len(files)))
        told = before_model([span for _, span, _ in seen], self.preprocessing.value_range)
        for text in (*remarks_of((file, remark) for file, _, remark in seen), *told):
            on_event(Event.warning(text))
        return found

    def _batch(self, files: Sequence[Path], top: int, seen: list[tuple[str, Span | None, str]]) -> list[Prediction]:
        view = plain_view(self.preprocessing)
        pictures, predictions = {}, {}
        for file in files:
            try:
                image = read(file, value_range=self.preprocessing.value_range)
                pictures[file] = view(image.made)
                seen.append((str(file), image.span, image.remark))
            except UndecodableError as error:
                predictions[file] = Prediction(str(file), problem=error.message.removeprefix(f"{file}: "))
        if pictures:
            images = torch.stack(list(pictures.values())).to(self._compute.device)
            with torch.no_grad(), self._compute.autocast():
                logits = self.model(normalise(images, self.preprocessing))  # (B, K)
            values, places = logits.float().softmax(dim=1).topk(top, dim=1)
            for file, value, place in zip(pictures, values.tolist(), places.tolist(), strict=True):
                names = tuple(self.classes[index] for index in place)
                predictions[file] = Prediction(str(file), names, tuple(value))
        return [predictions[file] for file in files]


@guarded(OF_A_MODEL, is_shared=True)
def load(run: str | Path, *, device: str = "auto", batch_size: int = 32) -> Classifier:
    """Load the best model of a finished run for prediction.

    Raises:
        CheckpointError: no run folder, or a run that did not come to its end.
    """
    return Classifier(load_run(run, device=device), batch_size=batch_size)
