"""The formats of export, in one table: each writes what it is and proves it equal to the model.

To add one: a row here, its name in `values.ExportFormat`, a line in docs/export.md.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import Any

from finetune.checkpoint.run_folder import RunFolder, write_json
from finetune.checkpoint.saved import SavedRun
from finetune.checkpoint.state import written_beside
from finetune.errors import ExportError, RecipeError, ResourceError
from finetune.exports.beside import names_beside, texts_beside
from finetune.exports.client import PROOF, digest_of, export_file, model_files, proof_of_file
from finetune.exports.coreml import write_coreml
from finetune.exports.described import Described
from finetune.exports.exporting import Export, Exporting
from finetune.exports.form import OnnxForm
from finetune.exports.litert import write_litert
from finetune.exports.onnx import in_form, write_in_form
from finetune.exports.openvino import write_openvino
from finetune.exports.proof import Parity, ProofImages
from finetune.exports.torch_formats import check_transform, known_to_timm, write_safetensors, write_timm, write_torch
from finetune.exports.triton import triton_place, write_config
from finetune.types import Event, OnEvent, ignore, to_json
from finetune.underway import underway
from finetune.values import ExportLayout
from finetune.whole import folder_made, held, is_vacant, unwritable, write_text

LESS_LOSSY = {"int8": "--precision fp16 or fp32.", "fp16": "--precision fp32."}
MOST_OF_FP32 = 0.35  # of the size of a file in fp32 may that in 8 bits have
FLAGS = {"preprocessing": "--with-preprocessing"}  # others are named like their fields


def _onnx(what: Exporting, path: Path, on_event: OnEvent) -> Parity:
    return write_in_form(what.model, path, what.proof, what.described, what.form, on_event=on_event)


Write = Callable[[Exporting, Path, OnEvent], Parity]
FORMATS: dict[str, Write] = {  # a file, or what fills a folder
    "onnx": _onnx,
    "timm": write_timm,
    "torch": write_torch,
    "safetensors": write_safetensors,
    "openvino": write_openvino,
    "coreml": write_coreml,
    "litert": write_litert,
}
TAKES: dict[str, tuple[str, ...]] = {  # fields of the form that a format has a meaning for
    "onnx": tuple(field.name for field in fields(OnnxForm)),
    "openvino": ("precision", "max_loss"),
    "coreml": ("precision", "max_loss"),
}
NEEDS = {  # of the formats whose library does not come with this tool: its module, and what pip calls it
    "openvino": ("openvino", "openvino"),
    "coreml": ("coremltools", "coremltools"),
    "litert": ("litert_torch", "litert-torch"),
}


def export_model(
    saved: SavedRun,
    format: str,
    proof: ProofImages,
    *,
    form: OnnxForm,
    out: Path | None,
    layout: ExportLayout = "file",
    data_licence: str = "",
    on_event: OnEvent = ignore,
) -> Export:
    """Write a run's model in a format, prove it, and put what helps to use it beside it.

    In the run's own exports/ it replaces the one before; elsewhere nothing is replaced.

    Raises:
        ExportError: it cannot be exported, or the export differs; no file stays then.
        ResourceError: the place is taken or cannot be written.
    """
    check_form(format, form)
    path = free_place(saved.folder, format, form=form, out=out, layout=layout)
    what = Exporting(saved.backbone.model, described(saved), proof, form, saved, data_licence)
    of_model = {"model": digest_of(*model_files(saved.folder))}
    if format == "onnx" and layout == "file":
        with underway(f"export to {path.name}", on_event):
            return write_proven(what, path, of_model=of_model, on_event=on_event)
    place = written_beside(path, keeps_before=False)
    with underway(f"export to {path.name}", on_event), held(path), place as beside:
        if format == "onnx":
            facts = _fill_repository(what, beside, of_model, on_event)
        else:
            parity = FORMATS[format](what, beside, on_event)
            _check(parity, what)
            facts = {"format": format, **_facts(parity), "bytes": _size(beside), **of_model}
            write_json(beside / PROOF, facts)
            _write_all(texts_beside(what, beside, format=format, proof=facts, name=path.name))
    return Export(path, format, facts)


def free_place(folder: RunFolder, format: str, *, form: OnnxForm, out: Path | None, layout: ExportLayout) -> Path:
    """Return where an export of a run goes: to `out`, else into its own exports/, where one before may be replaced.

    Raises:
        ResourceError: the place is taken.
    """
    own, is_file = folder.exports, format == "onnx" and layout == "file"
    path = out or (own / form.folder / "model.onnx" if is_file else own / (layout if format == "onnx" else format))
    if is_file and path.is_dir():
        raise ResourceError(f"{path} is a folder", hint="Give a file name with --out, e.g. model.onnx.")
    if is_file and path.suffix.lower() != ".onnx":  # by which predict and others tell it
        raise RecipeError(f"{path} does not end in .onnx", hint=f"Name it {path.name}.onnx.")
    if not is_file and path.exists() and not path.is_dir():
        raise ResourceError(f"{path} is a file, and {format} fills a folder", hint="Give another place with --out.")
    if own.resolve() not in path.resolve().parents:  # where others keep their files
        _check_free(path.resolve(), is_file=is_file)
    elif path.resolve() == export_file(folder).resolve() and (form.folder or not is_file):
        raise ResourceError(
            f"{path} is the place of the plain ONNX file, which finetune predict uses",
            hint="Leave out --out to put this form in its own folder beside it.",
        )
    return path


def write_proven(
    what: Exporting, path: Path, *, of_model: dict[str, str] | None = None, on_event: OnEvent = ignore
) -> Export:
    """Write an ONNX file that is proven to reproduce its model, with what helps to use it beside it.

    Raises:
        ExportError: it cannot be exported, or differs; no file stays then. ResourceError: it cannot be written.
    """
    with held(path):
        with _proven_file(what, path, on_event) as of_file:
            facts = {**of_file, **(of_model or {})}
            texts = texts_beside(what, path, format="onnx", proof=facts)
        write_json(names_beside(path)[PROOF], facts)
        _write_all(texts)
    return Export(path, "onnx", facts)


@contextmanager
def _proven_file(what: Exporting, path: Path, on_event: OnEvent) -> Iterator[dict[str, Any]]:
    """Write an ONNX file, proven or not at all, and yield the proof with its hash; it is there after the block."""
    beside = path.with_name(f".{path.name}.new.onnx")
    with folder_made(path.parent):
        try:
            _remove_all_of(beside)  # of a process that was killed
            parity = _onnx(what, beside, on_event)
            _check(parity, what)
            _check_worth(parity, beside.stat().st_size, what, on_event)
            of_file = {"file": path.name, "bytes": beside.stat().st_size, "digest": digest_of(beside)}
            yield {"format": "onnx", **_facts(parity), "form": to_json(what.form), **of_file}
            beside.replace(path)
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            _remove_all_of(beside)


def _remove_all_of(file: Path) -> None:
    """Remove a file and those whose names go on from its own."""
    for left in file.parent.glob(f"{escape(file.name)}*"):
        left.unlink()


def _write_all(texts: dict[Path, str]) -> None:
    for place, text in texts.items():
        write_text(place, text)


def _fill_repository(what: Exporting, root: Path, of_model: dict[str, str], on_event: OnEvent) -> dict[str, Any]:
    """Fill a model repository with an ONNX file, its configuration, and what helps to use it; return the proof."""
    file = triton_place(root, what)
    with _proven_file(what, file, on_event) as of_file:
        facts = {**of_file, **of_model}
    write_config(file, "labels.txt")
    write_json(proof_of_file(file), facts)
    _write_all(texts_beside(what, file.parents[1], format="triton", proof=facts))
    return facts


def described(saved: SavedRun) -> Described:
    """Return what a run's model takes and says."""
    config = getattr(saved.backbone.model, "pretrained_cfg", None) or {}
    return Described(
        saved.classes,
        saved.backbone.preprocessing,
        saved.task,
        tuple(saved.thresholds),
        saved.deviation,
        run=saved.folder.path.absolute().name,
        architecture=saved.backbone.architecture.registered,
        licence=str(config.get("license") or ""),
    )


def check_form(format: str, form: OnnxForm) -> None:
    """Check that a format has a meaning for what is asked of the form.

    Raises:
        RecipeError: it has none.
    """
    usual = OnnxForm()
    for field in fields(form):
        if field.name not in TAKES.get(format, ()) and getattr(form, field.name) != getattr(usual, field.name):
            flag = FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")
            raise RecipeError(f"{flag} has no meaning for --format {format}", hint="It is for --format onnx.")
    if form.precision == "int8" and format != "onnx":
        raise RecipeError(
            f"--precision int8 has no meaning for --format {format}",
            hint="Use fp16, or --format onnx with int8.",
        )


def check_model(saved: SavedRun, format: str, form: OnnxForm) -> None:
    """Check that a run's model can be exported in a format and a form, before all of val is asked.

    Raises:
        ExportError: it cannot. RecipeError: its task has no such output.
    """
    if format in ("timm", "safetensors"):
        known_to_timm(saved)
    if format == "timm":
        check_transform(saved)
    if format == "onnx":
        in_form(saved.backbone.model, described(saved), form)


def check_library(format: str) -> None:
    """Check that what writes a format, and proves it, is there.

    Raises:
        ExportError: it is not.
    """
    module, package = NEEDS.get(format, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise ExportError(f"{package} is not installed", hint=f"Install it: pip install {package}.")
    if format == "coreml" and sys.platform != "darwin":
        raise ExportError(
            "Core ML runs only on macOS: such an export cannot be proven equal to the model here",
            hint="Export on a Mac (copy the run folder there); --format onnx and litert are proven here.",
        )


def _check_free(path: Path, *, is_file: bool) -> None:
    places = (path, *names_beside(path).values()) if is_file else () if is_vacant(path) else (path,)
    for place in places:
        if place.exists():
            raise ResourceError(f"{place} already exists", hint="Give another place with --out, or remove it.")


def _check(parity: Parity, what: Exporting) -> None:
    if parity.is_proven:
        return
    if parity.max_loss is not None:
        raise ExportError(
            f"this network loses too much in {what.form.precision}: {parity.failure}",
            hint="Allow more with --max-loss, or export it with " + LESS_LOSSY[what.form.precision],
        )
    raise ExportError(
        f"the export does not reproduce the model: {parity.failure}",
        hint="Please report this network; the checkpoint and model/ are untouched.",
    )


def _check_worth(parity: Parity, size: int, what: Exporting, on_event: OnEvent) -> None:
    """Check that 8 bits are worth it on this machine, or say so where they are wanted all the same.

    Raises:
        ExportError: the file is hardly smaller than in fp32, or no quicker.
    """
    if parity.fp32_bytes is None:
        return
    faults, took = [], parity.milliseconds
    if size > MOST_OF_FP32 * parity.fp32_bytes:
        faults.append(
            f"the file has {size / 1e6:.2f} MB, {size / parity.fp32_bytes:.2f} of the {parity.fp32_bytes / 1e6:.2f} MB"
            f" of fp32, at most {MOST_OF_FP32:g} allowed"
        )
    if took["export"] >= took["fp32"]:
        faults.append(f"an image takes {took['export']:.2f} ms, {took['fp32']:.2f} ms in fp32")
    if not faults:
        return
    if parity.whole:
        faults.append(f"{max(0.0, parity.whole.loss):.1f} points of {parity.whole.measure} are lost")
    text = f"8 bits are not worth it here: {'; '.join(faults)}"
    if not what.form.force:
        raise ExportError(
            text, hint="--force keeps the file, e.g. for another machine; --precision fp16 halves the size."
        )
    on_event(Event.warning(text))


def _facts(parity: Parity) -> dict[str, Any]:
    return {**to_json(parity), "is_proven": True}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
