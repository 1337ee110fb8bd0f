"""Weights from a local file into a network: read safely, keys mended, and what was loaded told."""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import model_entrypoint
from torch import Tensor, nn

from finetune.backbone.groups import head_parameters
from finetune.errors import BackboneError

PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.")
# What torch and safetensors raise on damaged bytes, as seen when fed truncated and altered files.
DAMAGE_ERRORS = (
    SafetensorError, OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, pickle.PickleError, zipfile.BadZipFile,
)  # fmt: skip
CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "weights")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a file gave to a network: the share of the backbone's weights, and what did not fit."""

    source: str
    share: float
    has_classifier: bool = True
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Yield the report as one line for a person."""
        left = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", self.missing),
                ("of another shape", self.other_shape),
                ("not used", self.unexpected),
            )
            if names
        ]
        return f"{self.share:.0%} of the backbone's weights from {self.source}" + (
            f"; tensors {', '.join(left)}" if left else ""
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Yield the tensors of a .safetensors file, of a .pth file, or of the first of a folder.

    Nothing in a file is executed: a .pth is read with `weights_only=True`.

    Raises:
        BackboneError: the file is missing, damaged, wants code to be run, or holds no tensors.
    """
    file = _file_in(path) if path.is_dir() else path
    try:
        is_plain = file.suffix == ".safetensors"
        content = load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BackboneError(f"no weights file {file}") from None
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{file} is refused: it is no plain file of tensors, and reading it could run code ({first_line(error)})",
            hint="Save the tensors alone: torch.save(model.state_dict(), FILE), or as safetensors.",
        ) from error
    except DAMAGE_ERRORS as error:
        raise BackboneError(f"{file} cannot be read as weights: {first_line(error)}") from error
    return _tensors(content, file)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], *, architecture: str, source: str) -> LoadReport:
    """Copy what fits from a state dict into a network and tell what was and was not loaded.

    Prefixes such as `module.` are taken off, the architecture's own timm filter is applied, and a
    classifier of another size is left out.

    Raises:
        BackboneError: less than half of the backbone's weights are in the file.
    """
    own = model.state_dict()
    found = _filtered(model, _without_prefixes(tensors, own), architecture, source)
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    head = set(head_parameters(model))
    backbone = [key for key, _ in model.named_parameters() if key not in head]
    total = sum(own[key].numel() for key in backbone)
    share = sum(own[key].numel() for key in backbone if key in fitting) / max(total, 1)
    if share < 0.5:
        raise BackboneError(
            f"{source} holds {share:.0%} of the weights of {architecture}: these are another network's",
            hint="Name the network they belong to with --backbone, or give a timm folder, whose config.json names it.",
        )
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        source,
        share,
        has_classifier=bool(head) and head <= fitting.keys(),
        missing=tuple(key for key in own if key not in found and key not in head and _counts(key)),
        unexpected=tuple(key for key in found if key not in own),
        other_shape=tuple(
            key for key in found if key in own and key not in fitting and key not in head and _counts(key)
        ),
    )


def _counts(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


def _file_in(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BackboneError(f"{folder} holds no weights", hint=f"Looked for {', '.join(FOLDER_FILES)}.")


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise BackboneError(f"{file} holds no tensors by name")
    return tensors


def _without_prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def bare(key: str) -> str:
        while key not in own:
            prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
            if prefix is None:
                break
            key = key[len(prefix) :]
        return key

    return {bare(key): tensor for key, tensor in tensors.items()}


def _filtered(model: nn.Module, tensors: dict[str, Tensor], architecture: str, source: str) -> dict[str, Tensor]:
    """Apply timm's own filter, which knows other layouts and resizes position embeddings."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    convert: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return dict(convert(tensors, model))
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BackboneError(f"{source} does not fit {architecture}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Yield the first line of what an error says, its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
