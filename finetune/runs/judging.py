"""What is measured on labelled images: a finished run by torch, or a model file by onnxruntime.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune import recipe as recipes
from finetune.bands import Bands
from finetune.checkpoint.lineage import members_of, run_of
from finetune.checkpoint.run_folder import RunFolder, read_json
from finetune.checkpoint.saved import SavedRun, load_run, load_timm, trained_on
from finetune.data import checks
from finetune.data.targets import target_array
from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.evaluation.corruptions import Pixels, check_corruptible
from finetune.evaluation.views import Tta, check_cut
from finetune.exports.client import Client, digest_of, model_files, proof_of_file
from finetune.exports.proof import logits_of_files
from finetune.images.decode import read
from finetune.images.transforms import normalise, plain_view
from finetune.prepare.members import logits_on
from finetune.runs.answering import Model, opened_export
from finetune.runs.corrupting import OfPixels
from finetune.settings import DataSection, Recipe
from finetune.tasks import Task
from finetune.types import Event, Manifest, OnEvent, Sample, ignore


class JudgedModel(Protocol):
    """A model to be measured, and how its images are read."""

    classes: tuple[str, ...]
    task: Task
    thresholds: tuple[float, ...]
    value_range: tuple[float, float] | None
    bands: Bands
    data: DataSection
    is_refit: bool
    run: RunFolder | None
    origin: RunFolder | None  # the run, or the ensemble that an export is of

    def check_views(self, tta: Tta) -> None:
        """Check that its images can be seen in these views. Raises RecipeError: they cannot."""

    def manifest(self) -> Manifest:
        """Return the data that it was trained on. Raises DataError: none is known."""

    def logits(
        self, manifest: Manifest, samples: Sequence[Sample], *, batch_size: int, workers: int | None, tta: Tta
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) of images and their targets."""

    def of_pixels(self) -> OfPixels:
        """Return how it is asked about pixels. Raises RecipeError: it is not shown red, green and blue of 8 bits."""


class JudgedRun:
    """A finished run, or the model of a timm folder, by torch."""

    def __init__(self, saved: SavedRun, on_event: OnEvent, *, is_timm: bool) -> None:
        self.on_event = on_event
        self.saved, self.run, self.recipe = saved, saved.folder if not is_timm else None, saved.recipe
        if is_timm and (exported_from := _run_of(saved.folder.path / "config.json")):
            self.run, self.recipe = exported_from, recipes.load(exported_from.recipe)
        self.origin = self.run
        own = saved.backbone.preprocessing
        self.classes, self.task, self.thresholds = saved.classes, saved.task, saved.thresholds
        self.value_range, self.bands = own.value_range, own.bands
        self.data, self.is_refit = self.recipe.data, self.recipe.train.refit

    def check_views(self, tta: Tta) -> None:
        check_cut(tta, crop_mode=self.saved.backbone.preprocessing.crop_mode)

    def manifest(self) -> Manifest:
        if self.run is None:
            raise _unknown(self.saved.folder.path)
        return trained_on(self.run, self.recipe, self.classes, bands=self.bands)

    def logits(
        self, manifest: Manifest, samples: Sequence[Sample], *, batch_size: int, workers: int | None, tta: Tta
    ) -> tuple[Tensor, Tensor]:
        return logits_on(
            self.saved, manifest, samples, batch_size=batch_size, workers=workers, tta=tta, on_event=self.on_event
        )

    def of_pixels(self) -> OfPixels:
        own = self.saved.backbone.preprocessing
        check_corruptible(own.bands, own.image_size)
        view = plain_view(own)
        return OfPixels(lambda file: view(_decoded(self, file)).permute(1, 2, 0).numpy(), self._answer)

    def _answer(self, pixels: Sequence[Pixels]) -> Tensor:
        compute, backbone = self.saved.compute, self.saved.backbone
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(compute.device)
        with compute.in_force(), torch.no_grad(), compute.autocast():
            logits: Tensor = backbone.model(normalise(images, backbone.preprocessing))  # (B, K)
        return logits.float().cpu()


class JudgedFile:
    """An ONNX file of ours, by onnxruntime."""

    def __init__(self, file: Path, client: Client, on_event: OnEvent) -> None:
        self.file, self.client, self.on_event = file, client, on_event
        span = client.preprocessing["value_range"]
        self.classes, self.task, self.thresholds = tuple(client.classes), client.task, client.thresholds
        self.value_range, self.bands = tuple(span) if span else None, client.bands
        self.run, self.origin = _run_of(file), run_of(file)
        self.recipe = Recipe() if self.run is None else recipes.load(self.run.recipe)
        self.data, self.is_refit = self.recipe.data, self.recipe.train.refit

    @property
    def is_stale(self) -> bool:
        """Whether its proof names another model than its run has now; an ensemble belongs to no single run."""
        proof = proof_of_file(self.file)
        said = read_json(proof).get("model") if self.run is not None and proof.is_file() else None
        return said is not None and self.run is not None and said != digest_of(*model_files(self.run))

    def check_views(self, tta: Tta) -> None:
        check_cut(tta, crop_mode=self.client.preprocessing["crop_mode"], inside=self.client.inside)

    def manifest(self) -> Manifest:
        if self.run is None:
            raise _unknown(self.file)
        return trained_on(self.run, self.recipe, self.classes, bands=self.bands)

    def logits(
        self, manifest: Manifest, samples: Sequence[Sample], *, batch_size: int, workers: int | None, tta: Tta
    ) -> tuple[Tensor, Tensor]:
        samples = checks.unchanged(replace(manifest, samples=tuple(samples))).samples
        files = [Path(manifest.root, sample.file) for sample in samples]
        found = logits_of_files(
            partial(self._read, tta=tta), lambda images: self.client.answer_over(images, tta), files,
            batch_size=batch_size, what="measure", on_event=self.on_event,
        )  # fmt: skip
        return torch.from_numpy(found), torch.from_numpy(target_array(samples))

    def _read(self, file: Path, *, tta: Tta) -> NDArray[Any]:
        if tta == "5crop":  # cut otherwise than the file's metadata says
            return self.client.prepare(_decoded(self, file), tta)
        try:
            return self.client.read(file)
        except (OSError, ValueError, FinetuneError) as error:
            raise _gone(file, error) from error

    def of_pixels(self) -> OfPixels:
        height, width = self.client.preprocessing["image_size"]
        check_corruptible(self.bands, (height, width))
        if self.client.inside == "full":
            raise RecipeError(
                f"{self.file} resizes and cuts images itself (--with-preprocessing full): what it is shown in the end"
                " cannot be corrupted",
                hint="Name the run or its plain ONNX file.",
            )
        client = self.client
        return OfPixels(
            lambda file: client.middle(_decoded(self, file)),
            lambda pixels: torch.from_numpy(client.answer([client.of_middle(one) for one in pixels])),
        )


def judged(model: Model, *, device: str, on_event: OnEvent = ignore) -> JudgedModel:
    """Return the model at a path, ready to be measured.

    Raises:
        CheckpointError: no finished run. ExportError: an ONNX file that is none of ours.
    """
    if model.file is not None:
        of_file = JudgedFile(model.file, opened_export(model.file), on_event)
        if of_file.is_stale:
            on_event(Event.warning(f"{model.file} was made from another model than its run holds now"))
        return of_file
    saved = load_timm(model.path, device=device) if model.is_timm else load_run(model.path, device=device)
    return JudgedRun(saved, on_event, is_timm=model.is_timm)


def _run_of(file: Path) -> RunFolder | None:
    """Return the run in whose exports a file is; for an ensemble, its first member."""
    folder = run_of(file)
    members = members_of(folder) if folder and folder.exports in file.absolute().parents else []
    return next((run for run in members[:1] if run.recipe.is_file() and run.split.is_file()), None)


def _decoded(model: JudgedModel, file: Path) -> Any:
    """Return the image in a file, as a model's images are decoded.

    Raises:
        DataError: it cannot be read any more.
    """
    try:
        return read(file, value_range=model.value_range, bands=model.bands).content
    except FinetuneError as error:
        raise _gone(file, error) from error


def _gone(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} could be read when the data was scanned and cannot now: {error}",
        hint="Name labelled images that are there: --data DIR.",
    )


def _unknown(path: Path) -> DataError:
    return DataError(
        f"{path} does not say what data it was trained on", hint="Name labelled images to measure it on: --data DIR."
    )
