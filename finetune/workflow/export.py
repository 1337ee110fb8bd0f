"""Exports of a finished run: an ONNX file that is proven equal, or timm's folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch

from finetune.backbone.classics import CLASSICS
from finetune.backbone.staged import StagedClassifier
from finetune.checkpoint.run_folder import write_json
from finetune.checkpoint.saved import SavedRun, load_run
from finetune.data.decode import read_rgb
from finetune.device import in_fast_layout
from finetune.errors import ExportError, ResourceError, did_you_mean
from finetune.exports.onnx import Parity, prove, write_onnx
from finetune.prepare.passes import plain_batches
from finetune.types import to_json
from finetune.whole import is_vacant, whole_folder

NUM_PROOF_IMAGES = 14
Format = Literal["onnx", "timm"]


@dataclass(frozen=True, slots=True)
class Export:
    """Where an export lies, and the proof that it equals the model."""

    path: Path
    format: str
    parity: dict[str, Any]


def export(run: str | Path, *, format: Format = "onnx", out: str | Path | None = None) -> Export:
    """Export the best model of a finished run, and prove on real val images that it computes the same.

    Raises:
        ExportError: it cannot be exported, or the export differs; no file stays then.
        CheckpointError: no finished run. ResourceError: the place is taken or cannot be written.
    """
    _check_format(format)
    saved = load_run(run, device="cpu")
    if format == "timm":
        return _timm_folder(saved, Path(out) if out else saved.folder.exports / "timm")
    return _onnx(saved, Path(out) if out else saved.folder.exports / "model.onnx")


def _check_format(name: str) -> None:
    if name not in get_args(Format):
        known = get_args(Format)
        raise ExportError(f"format {name!r} is none of {', '.join(known)}.{did_you_mean(str(name), known)}")


def _onnx(saved: SavedRun, path: Path) -> Export:
    if path.is_dir():
        raise ResourceError(f"{path} is a folder", hint="Give a file name with --out, e.g. model.onnx.")
    beside = path.with_name(f".{path.name}.new.onnx")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_onnx(saved.backbone.model, beside, classes=saved.classes, preprocessing=saved.backbone.preprocessing)
        parity = prove(saved.backbone.model, beside, *_proof(saved))
        if not parity.is_proven:
            raise ExportError(
                _failure(parity), hint="Please report this network; the checkpoint and model/ are untouched."
            )
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        for left in path.parent.glob(f"{beside.name}*"):
            left.unlink()
    proof = {**to_json(parity), "is_proven": True, "file": path.name}
    write_json(path.with_name("parity.json"), proof)
    return Export(path, "onnx", proof)


def _timm_folder(saved: SavedRun, place: Path) -> Export:
    if isinstance(saved.backbone.model, StagedClassifier):
        raise ExportError(
            f"this model classifies at the inner layer group {saved.backbone.model.at}, which timm has no network for",
            hint="Use --format onnx.",
        )
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
        images, difference = _difference_of_timm(saved, beside)
        if difference != 0:
            raise ExportError(f"timm's model differs from ours by up to {difference:g}")
    return Export(place, "timm", {"num_images": len(images), "largest_difference": difference, "is_proven": True})


def _difference_of_timm(saved: SavedRun, folder: Path) -> tuple[torch.Tensor, float]:
    """Return real images, and how far the logits of timm's own model and transform lie from ours on them."""
    images, files = _proof(saved)
    again = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    in_fast_layout(again, images.device)  # as ours is: else other kernels run, with other last bits
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(again, use_test_size=True))
    value_range = saved.backbone.preprocessing.value_range
    theirs = torch.stack([view(read_rgb(file, value_range=value_range)) for file in files])  # (N, 3, H, W)
    with torch.no_grad():
        return images, float((again(theirs) - saved.backbone.model(images)).abs().max())


def _proof(saved: SavedRun) -> tuple[torch.Tensor, list[Path]]:
    """Return images (N, 3, H, W) of val, or of what split there is, as evaluation sees them, and their files."""
    manifest = saved.manifest()
    judged = next(found for name in ("val", "test", "train") if (found := manifest.split(name)))
    samples = judged[:: max(1, len(judged) // NUM_PROOF_IMAGES)][:NUM_PROOF_IMAGES]
    batches = plain_batches(saved.recipe, manifest, saved.backbone, samples)
    images = torch.cat([images.cpu() for images, _ in batches.epoch()])  # (N, 3, H, W)
    return images, [Path(manifest.root, sample.file) for sample in samples]


def _failure(parity: Parity) -> str:
    return (
        "the ONNX file does not reproduce the model: logits differ by up to"
        f" {parity.largest_difference:.2e} at a largest logit of {parity.largest_logit:.2e}"
        + ("" if parity.same_top1 else ", and the top class differs")
    )
