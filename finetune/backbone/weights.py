"""Weights from a local file into a network: read safely, keys matched, and what was loaded reported."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv, model_entrypoint
from torch import Tensor, nn

from finetune.backbone.blank import USUAL
from finetune.backbone.folder import is_folder, read_config
from finetune.backbone.groups import head_parameters
from finetune.backbone.sets import flat, is_counted, matched, of_set
from finetune.errors import BackboneError
from finetune.types import LayerGroup
from finetune.wording import first_line

# What torch and safetensors raise on damaged bytes, as seen when fed truncated and altered files.
DAMAGE_ERRORS = (
    SafetensorError, OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, pickle.PickleError, zipfile.BadZipFile,
)  # fmt: skip
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded from a file into a network: the share of the backbone's weights, and what did not fit."""

    source: str
    share: float
    has_classifier: bool = True
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def random(self) -> tuple[str, ...]:
        """The tensors of the backbone that were not in the file."""
        return (*self.missing, *self.other_shape)

    def sentence(self) -> str:
        """Return the report as one line for a person."""
        left = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", self.missing),
                ("of another shape", self.other_shape),
                ("not used", self.unexpected),
            )
            if names
        ]
        is_all = self.share == 1 and not self.random
        share = "100%" if is_all else f"{min(floor(1000 * self.share) / 10, 99.9):g}%"
        said = [f"{share} of the backbone's weights from {self.source}", *self.remarks]
        return "; ".join([*said, f"tensors {', '.join(left)}"] if left else said)


def file_of(path: Path) -> tuple[Path, str]:
    """Return the weights file, and the set in it that FILE#SET names; "" if none is named."""
    file, mark, name = str(path).rpartition("#")
    return (Path(file), name) if mark and not path.exists() and Path(file).is_file() else (path, "")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, of a .pth file, or of the first of a folder.

    Of a file with several sets of weights (raw and averaged, teacher and student) all are returned, each under its
    name, or the one that FILE#SET names. Nothing in a file is executed: a .pth is read with `weights_only=True`,
    and of what is no tensor only a plain `argparse.Namespace`, as timm's own training leaves, is let in.

    Raises:
        BackboneError: the file is missing, damaged, wants code to be run, or holds no tensors.
    """
    file, named = file_of(_file_in(path) if path.is_dir() else path)
    if file.is_file() and not file.stat().st_size:
        raise BackboneError(f"{file} is empty", hint="Its download or copy was interrupted: get it again.")
    try:
        is_plain = file.suffix == ".safetensors"
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
        sets = flat(content)
    except FileNotFoundError:
        raise BackboneError(f"no weights file {file}") from None
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{file} is refused: it holds more than tensors, and reading it could run code ({_refused(error)})",
            hint="Save the tensors alone: torch.save(model.state_dict(), FILE), or as safetensors.",
        ) from error
    except DAMAGE_ERRORS as error:
        raise BackboneError(f"{file} cannot be read as weights: {first_line(error)}") from error
    return of_set(sets, named, file)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], *, architecture: str, source: str) -> LoadReport:
    """Copy what fits from a state dict into a network, and report what was and was not loaded.

    Among several sets of weights the best fit is taken, among equals the averaged one. Its prefix is removed,
    the architecture's own timm filter is applied, a stem of one channel is spread over three, and a classifier of
    another size is left out.

    Raises:
        BackboneError: less than half of the backbone's weights are in the file, or one cannot be used as it is.
    """
    own = model.state_dict()
    chosen = matched(tensors, own)
    filtered = _filtered(model, chosen.tensors, architecture, source)
    filtered = {key: _of_shape(tensor, own[key]) if key in own else tensor for key, tensor in filtered.items()}
    said = [*chosen.remarks(source), *_spread_stem(model, filtered, own)]
    fitting = {k: v for k, v in filtered.items() if k in own and v.shape == own[k].shape}
    head = set(head_parameters(model))
    backbone = [key for key, _ in model.named_parameters() if key not in head]
    total = sum(own[key].numel() for key in backbone)
    share = sum(own[key].numel() for key in backbone if key in fitting) / max(total, 1)
    if share < 0.5:
        raise BackboneError(
            f"{source} holds {share:.0%} of the weights of {architecture}: they are another network's",
            hint="Name the network they belong to with --backbone, or give a timm folder, whose config.json names it.",
        )
    fitting = {key: _usable(tensor, own[key], f"{source} holds", key) for key, tensor in fitting.items()}
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        source,
        share,
        has_classifier=bool(head) and head <= fitting.keys(),
        missing=tuple(key for key in own if key not in filtered and key not in head and is_counted(key)),
        unexpected=tuple(key for key in filtered if key not in own),
        other_shape=tuple(
            key for key in filtered if key in own and key not in fitting and key not in head and is_counted(key)
        ),
        remarks=tuple(said),
    )


def _usable(tensor: Tensor, own: Tensor, holder: str, key: str) -> Tensor:
    """Return a tensor in the precision of the network's tensor.

    Raises:
        BackboneError: its type is another kind (quantised, complex), or it is not finite in that precision.
    """
    if own.is_floating_point() and not tensor.is_floating_point():
        raise BackboneError(
            f"{holder} numbers of another type, {tensor.dtype} in {key}, where the network has {own.dtype}",
            hint="Quantised and complex weights cannot be used: save the network's own, as floating point numbers.",
        )
    value = tensor.to(own.dtype)
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise BackboneError(
            f"{holder} numbers that are not finite, in {key}: nothing can be computed with it",
            hint="Its training diverged, or the file is damaged: take an earlier checkpoint.",
        )
    return value


def _of_shape(tensor: Tensor, own: Tensor) -> Tensor:
    """Return a single number in the network's shape for it, anything else unchanged."""
    return tensor.reshape(own.shape) if tensor.numel() == own.numel() == 1 else tensor


def _spread_stem(model: nn.Module, tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Spread a first convolution of one channel over the network's three, add one of three up for one channel, or
    repeat its red in a fourth and so on, all scaled to the same sum, as timm does.

    Returns what was done, in words. Of one channel or three, grey images then give the same.
    """
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    said = []
    for key in (f"{name}.weight" for name in ([first] if isinstance(first, str) else first)):
        tensor, wanted = tensors.get(key), own.get(key)
        if tensor is None or wanted is None or tensor.shape == wanted.shape or tensor.ndim != 4:
            continue
        channels = wanted.shape[1]
        if tensor.shape[1] == 1 and tensor.shape[2:] == wanted.shape[2:] and len(tensor) == len(wanted):
            tensors[key] = tensor.repeat(1, channels, 1, 1) / channels
            said.append(f"its one-channel stem is spread over {channels}")
        elif channels == 1 and tensor.shape[1] == USUAL and tensor.shape[2:] == wanted.shape[2:]:
            tensors[key] = tensor.sum(dim=1, keepdim=True)
            said.append(f"its {USUAL}-channel stem is summed for one")
        elif channels != USUAL == tensor.shape[1] and tensor.shape[2:] == wanted.shape[2:]:
            tensors[key] = adapt_input_conv(channels, tensor)
            said.append(f"its {USUAL}-channel stem is repeated for {channels}")
    return said


def refuse_random(
    report: LoadReport | None, groups: Sequence[LayerGroup], *, trained: Collection[str] = frozenset()
) -> None:
    """Refuse weights that leave a layer random in a frozen layer group.

    Raises:
        BackboneError: tensors of a frozen layer group are not in the file, or have another shape there.
    """
    if report is None:
        return
    frozen = [group for group in groups if not group.is_head and group.name not in trained]
    modules = {name.rpartition(".")[0] for group in frozen for name in group.parameters}
    random = [name for name in report.random if name.rpartition(".")[0] in modules]
    if random:
        raise BackboneError(
            f"{report.source} leaves {len(random)} tensor{'s' if len(random) > 1 else ''} random in layers that would"
            f" stay frozen, e.g. {random[0]}",
            hint="Give weights that hold them, or train these layers: --strategy full, or --top-k with more groups.",
        )


def model_of_run(folder: Path) -> Path:
    """Return the model of a finished run where a run folder is named, else what is named.

    Raises:
        BackboneError: the run has no model yet, or the folder holds several runs.
    """
    kinds = {"compare.json": "comparison", "several.json": "set"}
    if kind := next((kind for name, kind in kinds.items() if (folder / name).is_file()), None):
        raise BackboneError(
            f"{folder} is a {kind} of several runs", hint=f"Name the folder of one of its runs: {folder}/runs/RUN."
        )
    if is_folder(folder) or not any((folder / name).is_file() for name in ("recipe.toml", "asked.toml")):
        return folder
    if is_folder(folder / "model"):
        if read_config(folder / "model").probe_at is not None:
            raise BackboneError(
                f"the model of {folder} classifies at an inner layer group: it cannot serve as a backbone",
                hint="Name the backbone it was trained from.",
            )
        return folder / "model"
    raise BackboneError(
        f"{folder} holds no model",
        hint="Name the folder of one finished run; an interrupted one is finished by `finetune run --resume`.",
    )


def _file_in(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BackboneError(f"{folder} holds no weights", hint=f"Looked for {', '.join(FOLDER_FILES)}.")


def _filtered(model: nn.Module, tensors: dict[str, Tensor], architecture: str, source: str) -> dict[str, Tensor]:
    """Return tensors after timm's own filter, which knows other layouts and resizes position embeddings."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    convert: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return dict(convert(tensors, model))
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BackboneError(f"{source} does not fit {architecture}: {first_line(error)}") from error


def _refused(error: BaseException) -> str:
    """Return the class that a file wants to build, from torch's message refusing it."""
    names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return f"it holds {names[0]}" if names else first_line(error)
