"""The formats of export, in one table: each writes what it is and proves it equal to the model.

To add one: a row here, its name in `values.ExportFormat`, a line in docs/export.md. Letters: N images.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from finetune.backbone.classics import CLASSICS
from finetune.backbone.pools import OURS
from finetune.backbone.staged import StagedClassifier
from finetune.checkpoint.run_folder import write_json
from finetune.checkpoint.saved import SavedRun
from finetune.device import in_fast_layout
from finetune.errors import ExportError, ResourceError
from finetune.exports.beside import names_beside, write_beside
from finetune.exports.client import digest_of, model_files
from finetune.exports.onnx import Parity, prove, write_onnx
from finetune.images.decode import read_rgb
from finetune.tasks import Task
from finetune.types import Preprocessing, to_json
from finetune.whole import is_vacant, whole_folder
from finetune.wording import counted

FULL = " with all bits"


@dataclass(frozen=True, slots=True)
class Export:
    """Where an export lies, and the proof that it equals the model."""

    path: Path
    format: str
    parity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """Real images (N, 3, H, W) as evaluation sees them, and their files."""

    images: Tensor
    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Format:
    """One format: what its file or folder is called in RUN/exports, and what writes and proves it there.

    `write` raises ExportError where the model cannot be exported or the export differs, and leaves nothing then;
    ResourceError where the place is taken or cannot be written.
    """

    name: str
    write: Callable[[SavedRun, Path, Proof], Export]


def _onnx(saved: SavedRun, path: Path, proof: Proof) -> Export:
    if path.is_dir():
        raise ResourceError(f"{path} is a folder", hint="Give a file name with --out, e.g. model.onnx.")
    proof_file = path.with_name("parity.json")
    if path.absolute().parent != saved.folder.exports.absolute():  # where others keep their files
        proof_file = path.with_name(f"{path.stem}.parity.json")
        for place in (path, proof_file, *names_beside(path).values()):
            if place.exists():
                raise ResourceError(f"{place} exists already", hint="Give another name with --out, or remove it.")
    facts = write_proven(
        saved.backbone.model,
        path,
        proof,
        classes=saved.classes,
        preprocessing=saved.backbone.preprocessing,
        task=saved.task,
        thresholds=saved.thresholds,
        deviation=saved.deviation,
        hint="Please report this network; the checkpoint and model/ are untouched.",
    )
    facts["model"] = digest_of(*model_files(saved.folder))
    write_json(proof_file, facts)
    return Export(path, "onnx", facts)


def write_proven(
    model: nn.Module,
    path: Path,
    proof: Proof,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    task: Task,
    thresholds: Sequence[float] = (),
    deviation: float | None = None,
    hint: str = "",
) -> dict[str, Any]:
    """Write a model as an ONNX file that is proven to reproduce it, and return the proof with the file's hash.

    What helps others to use it stands beside it (see `beside`).

    Raises:
        ExportError: it cannot be exported, or differs; no file stays then. ResourceError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new.onnx")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_onnx(model, beside, classes=classes, preprocessing=preprocessing, task=task, thresholds=thresholds)
        if list(path.parent.glob(f"{beside.name}.*")):  # weights of 2 GB and more lie in a file of their own
            raise ExportError("this network is too large for one ONNX file", hint="Use --format timm.")
        parity = prove(model, beside, proof.images, proof.files, deviation=deviation)
        if not parity.is_proven:
            raise ExportError(_failure(parity), hint=hint)
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        for left in path.parent.glob(f"{beside.name}*"):
            left.unlink()
    facts = {**to_json(parity), "is_proven": True, "file": path.name, "digest": digest_of(path)}
    write_beside(path, classes=classes, preprocessing=preprocessing, task=task, proof=facts)
    return facts


def _timm_folder(saved: SavedRun, place: Path, proof: Proof) -> Export:
    if isinstance(saved.backbone.model, StagedClassifier):
        raise ExportError(
            f"this model classifies at the inner layer group {saved.backbone.model.at}, which timm has no network for",
            hint="Use --format onnx.",
        )
    own = saved.backbone.preprocessing
    if own.channels != 3 or own.bands.is_full:
        raise ExportError(
            f"this model takes {counted(own.channels, 'channel')} of an image{FULL if own.bands.is_full else ''}, and"
            " timm's transform gives it red, green and blue of 8 bits",
            hint="Use --format onnx, whose metadata says what to do.",
        )
    pool = saved.backbone.architecture.pool
    if pool in OURS:
        raise ExportError(f"this model pools with {pool!r}, which timm's networks have not", hint="Use --format onnx.")
    name = saved.backbone.architecture.registered
    if name in CLASSICS:
        raise ExportError(
            f"timm itself has no network {name}: its folder would load nowhere",
            hint=f"Use --format onnx. In Python, timm loads {saved.folder.model} once this tool's networks are known:"
            " import finetune.backbone.classics.",
        )
    if not is_vacant(place):
        raise ResourceError(f"{place} exists already", hint="Give another place with --out, or remove it.")
    with whole_folder(place) as beside:
        shutil.copytree(saved.folder.model, beside, dirs_exist_ok=True)
        difference = _difference_of_timm(saved, beside, proof)
        if difference != 0:
            raise ExportError(f"timm's model differs from ours by up to {difference:g}")
    return Export(place, "timm", {"num_images": len(proof.files), "largest_difference": difference, "is_proven": True})


def _difference_of_timm(saved: SavedRun, folder: Path, proof: Proof) -> float:
    """Return how far the logits of timm's own model and transform lie from ours on real images."""
    again = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    in_fast_layout(again, proof.images.device)  # as ours is: else other kernels run, with other last bits
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(again, use_test_size=True))
    value_range = saved.backbone.preprocessing.value_range
    theirs = torch.stack([view(read_rgb(file, value_range=value_range)) for file in proof.files])  # (N, 3, H, W)
    with torch.no_grad():
        return float((again(theirs) - saved.backbone.model(proof.images)).abs().max())


def _failure(parity: Parity) -> str:
    return (
        "the ONNX file does not reproduce the model: logits differ by up to"
        f" {parity.largest_difference:.2e} at a largest logit of {parity.largest_logit:.2e}"
        + ("" if parity.same_top1 else ", and the answer differs")
    )


FORMATS = {"onnx": Format("model.onnx", _onnx), "timm": Format("timm", _timm_folder)}
