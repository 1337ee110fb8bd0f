"""Models that can name images, by path: a run, an ensemble, an ONNX file, a folder of exports, a timm folder.

Also an ONNX file as a model without torch. Letters: B batch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from finetune.checkpoint.run_folder import RunFolder, open_answering
from finetune.errors import CheckpointError, ExportError, RecipeError, did_you_mean
from finetune.evaluation.predictions import Answers, Scorer, probabilities_of
from finetune.evaluation.views import Tta, check_cut
from finetune.exports.client import PROOF, Client, digest_of, export_file, proof_of_file, proven_export
from finetune.types import Event, OnEvent
from finetune.wording import first_line

MANY = 1000  # images that are worth starting a GPU
ONNX = ".onnx"
FILES = ("model.onnx", "1/model.onnx", "*/1/model.onnx")  # in a folder of exports, or a model repository for Triton
TIMM_FILES = ("config.json", "model.safetensors")
By = Literal["auto", "torch", "onnxruntime"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that names images: the folder of a run, an ensemble or timm, or a single ONNX file."""

    path: Path
    run: RunFolder | None = None  # of a run or an ensemble
    file: Path | None = None  # the one that stands alone, or that of an ensemble

    @property
    def is_timm(self) -> bool:
        return self.run is None and self.file is None


def open_model(path: str | Path) -> Model:
    """Return the model at a path, without torch.

    Raises:
        CheckpointError: there is none. ExportError: a file is not the one that was proven.
    """
    place = Path(path)
    if place.suffix.lower() == ONNX and not place.is_dir():
        if not place.is_file():
            raise CheckpointError(f"no such file: {place}", hint="Name a run folder, or an ONNX file that is there.")
        return Model(place, file=place)
    if not RunFolder(place).recipe.is_file() and not RunFolder(place).ensemble.is_file():
        file = next((found for pattern in FILES for found in sorted(place.glob(pattern))), None)
        if file is not None:
            _check_proven(file)
            return Model(place, file=file)
        if all((place / name).is_file() for name in TIMM_FILES):
            return Model(place)
        _check_no_other_format(place)
    folder = open_answering(place)
    return Model(place, run=folder, file=_of_ensemble(folder) if folder.ensemble.is_file() else None)


def chosen_export(model: Model, engine: By, device: str, *, num_images: int | None, on_event: OnEvent) -> Path | None:
    """Return the ONNX file that answers; None if the model itself does. One that is there but not used is reported.

    Raises:
        RecipeError: an engine or a device that does not go with what is there.
        ExportError: the export is asked for by its engine, and there is none that is proven.
    """
    if engine not in get_args(By):
        raise RecipeError(
            f"engine = {engine!r} is not one of {', '.join(get_args(By))}.{did_you_mean(engine, get_args(By))}"
        )
    if model.file is not None:
        if engine == "torch" or device not in ("auto", "cpu"):
            is_ensemble = model.run is not None
            what = "an ensemble: one ONNX file" if is_ensemble else "an ONNX file"
            way = "ask its members one by one" if is_ensemble else "name the run that it was made from"
            raise RecipeError(
                f"{model.path} is {what}, which runs on a CPU",
                hint=f"Leave out --engine and --device, or {way}.",
            )
        return model.file
    if model.run is None and engine == "onnxruntime":
        raise RecipeError(f"{model.path} is a timm folder, which runs in torch", hint="Leave out --engine.")
    is_for_processor = _is_for_processor(device, num_images)
    return None if model.run is None else _of_run(model.run, engine, is_for_processor, on_event)


def opened_export(file: Path) -> Client:
    """Return an ONNX file of ours under onnxruntime.

    Raises:
        ExportError: the file is none.
    """
    try:
        client = Client(file)
        client.preprocessing["value_range"]
    except Exception as error:  # onnxruntime's errors have no common base; a strange file lacks our metadata
        why = f"its metadata has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ExportError(
            f"{file} is not an ONNX file of this tool: {why}",
            hint="finetune export RUN --format onnx writes one, with its classes and how images are prepared.",
        ) from error
    return client


def scorer_of(client: Client, *, tta: Tta = "none") -> Scorer[NDArray[Any]]:
    """Return a scorer that names images with an ONNX file, by the mean over the views that `tta` stands for.

    Raises:
        RecipeError: no such views can be given to the file.
    """
    check_cut(tta, crop_mode=client.preprocessing["crop_mode"], inside=client.inside)

    def answers(images: Sequence[NDArray[Any]]) -> Answers:
        return Answers(probabilities_of(client.activation, client.answer_over(images, tta)))

    value_range = client.preprocessing["value_range"]
    span = tuple(value_range) if value_range else None
    prepare = partial(client.prepare, tta=tta)
    return Scorer(tuple(client.classes), span, prepare, answers, client.task, client.thresholds, client.bands)


def _check_proven(file: Path) -> None:
    """Check that the ONNX file in a folder of exports is the proven one, if a proof is there.

    Raises:
        ExportError: it is another.
    """
    proof = proof_of_file(file)
    if not proof.is_file():
        return
    try:
        is_proven = json.loads(proof.read_text(encoding="utf-8"))["digest"] == digest_of(file)
    except (OSError, ValueError, TypeError, KeyError):
        is_proven = False
    if not is_proven:
        raise ExportError(
            f"{file} is not the file that {proof.name} says was proven",
            hint=f"Export it again, or name the file itself to take it as it is: {file}",
        )


def _check_no_other_format(folder: Path) -> None:
    """Refuse an export for another library with its name, rather than as not being a run folder.

    Raises:
        CheckpointError: the folder is one.
    """
    try:
        facts = json.loads((folder / PROOF).read_text(encoding="utf-8"))
        format, whole = facts["format"], facts["whole"]
        reached = f"{whole['measure']} {whole['export']:.3f} on {whole['split']}"
    except (OSError, ValueError, TypeError, KeyError):
        return
    raise CheckpointError(
        f"{folder} is an export in the format {format}, which runs in its own library",
        hint=f"Its proof.json has what it reaches: {reached}. Name the run that it was made from, or an ONNX file.",
    )


def _of_ensemble(folder: RunFolder) -> Path:
    """Return the file of an ensemble, which alone can answer."""
    export = proven_export(folder)
    if export is None:
        raise ExportError(
            f"{export_file(folder)} is not the file that was proven equal to its members",
            hint="Make the ensemble again: ensemble.json names its members.",
        )
    return export


def _of_run(folder: RunFolder, engine: By, is_for_processor: bool, on_event: OnEvent) -> Path | None:
    if engine == "torch":
        return None
    export = proven_export(folder)
    anew = f"Prove it again: finetune export {shlex.quote(str(folder.path))} --format onnx"
    if engine == "onnxruntime" and not is_for_processor:
        raise RecipeError("engine = 'onnxruntime' runs on a CPU", hint="Use --device cpu, or --engine torch.")
    if engine == "onnxruntime" and export is None:
        raise ExportError(f"{folder.path} has no ONNX export that is proven equal to its model", hint=f"{anew}.")
    if export is None and is_for_processor and export_file(folder).is_file():
        why = "is not proven equal to the model that stands there"
        on_event(Event.warning(f"{export_file(folder)} {why}: the model itself answers. {anew}"))
    return export if is_for_processor else None


def _is_for_processor(device: str, num_images: int | None) -> bool:
    """Return, without torch, whether the CPU may compute: no GPU is asked for, or none is worth starting.

    If the number of images is unknown, few are expected.
    """
    is_few = num_images is None or num_images < MANY
    return device == "cpu" or (device == "auto" and (is_few or not Path("/dev/nvidiactl").exists()))
