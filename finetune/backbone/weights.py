"""Weights from a local file into a network: read safely, keys matched, and what was loaded reported."""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import model_entrypoint
from torch import Tensor, nn

from finetune.backbone.folder import is_folder, read_config
from finetune.backbone.groups import head_parameters
from finetune.errors import BackboneError
from finetune.types import LayerGroup

PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.")
# What torch and safetensors raise on damaged bytes, as seen when fed truncated and altered files.
DAMAGE_ERRORS = (
    SafetensorError, OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, pickle.PickleError, zipfile.BadZipFile,
)  # fmt: skip
# The sets of weights that files hold, the averaged ones first, as timm takes them.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "model_state_dict", "weights", "student",
)  # fmt: skip
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
    remarks: tuple[str, ...] = ()

    @property
    def random(self) -> tuple[str, ...]:
        """The tensors of the backbone that the file did not give."""
        return (*self.missing, *self.other_shape)

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
        share = f"{self.share:.0%}" if self.share == 1 else f"{min(floor(1000 * self.share) / 10, 99.9):g}%"
        said = [f"{share} of the backbone's weights from {self.source}", *self.remarks]
        return "; ".join([*said, f"tensors {', '.join(left)}"] if left else said)


def file_of(path: Path) -> tuple[Path, str]:
    """Return the file of weights, and the set in it that FILE#SET names; "" where none is named."""
    file, mark, name = str(path).rpartition("#")
    return (Path(file), name) if mark and not path.exists() and Path(file).is_file() else (path, "")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, of a .pth file, or of the first of a folder.

    Of a file with several sets of weights (averaged ones, a teacher) the first of `CONTAINERS` is taken, or the
    one that is named: FILE#SET. Nothing in a file is executed: a .pth is read with `weights_only=True`.

    Raises:
        BackboneError: the file is missing, damaged, wants code to be run, or holds no tensors.
    """
    file, named = file_of(_file_in(path) if path.is_dir() else path)
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
    return _tensors(content, file, named)


def load_into(
    model: nn.Module, tensors: Mapping[str, Tensor], *, architecture: str, source: str, remarks: Sequence[str] = ()
) -> LoadReport:
    """Copy what fits from a state dict into a network, and report what was and was not loaded.

    A prefix that the matching keys share is taken off, the architecture's own timm filter is applied, a stem of
    one channel is spread over three, and a classifier of another size is left out.

    Raises:
        BackboneError: less than half of the backbone's weights are in the file, or one is no finite number.
    """
    own = model.state_dict()
    bare, prefixes = _without_prefix(tensors, own)
    found = _filtered(model, bare, architecture, source)
    found = {key: _of_shape(tensor, own[key]) if key in own else tensor for key, tensor in found.items()}
    said = [*remarks, *([f"those under {prefixes[0]}* of {', '.join(prefixes)}"] if prefixes[1:] else [])]
    said += _spread_stem(model, found, own)
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
    odd = next((k for k, v in fitting.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if odd is not None:
        raise BackboneError(
            f"{source} holds numbers that are not finite, in {odd}: nothing can be computed with it",
            hint="Its training diverged, or the file is damaged: take an earlier checkpoint.",
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
        remarks=tuple(said),
    )


def sets_in(path: Path) -> str:
    """Return which set of weights of a file is taken and which not, in words; "" where there is but one."""
    file, named = file_of(_file_in(path) if path.is_dir() else path)
    if file.suffix == ".safetensors":
        return ""
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    names = _sets(content)
    if len(names) < 2:
        return ""
    taken = named or names[0]
    others = ", ".join(f"{file.name}#{name}" for name in names if name != taken)
    return f"of its sets of weights {taken} (--weights takes the other as {others})"


def _of_shape(tensor: Tensor, own: Tensor) -> Tensor:
    """Return a single number in the shape that the network has for it, anything else as it is."""
    return tensor.reshape(own.shape) if tensor.numel() == own.numel() == 1 else tensor


def _spread_stem(model: nn.Module, found: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Spread a first convolution of one channel over the network's three: grey images then give the same."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    said = []
    for key in (f"{name}.weight" for name in ([first] if isinstance(first, str) else first)):
        tensor, wanted = found.get(key), own.get(key)
        if tensor is None or wanted is None or tensor.shape == wanted.shape or tensor.ndim != 4:
            continue
        channels = wanted.shape[1]
        if tensor.shape[1] == 1 and tensor.shape[2:] == wanted.shape[2:] and len(tensor) == len(wanted):
            found[key] = tensor.repeat(1, channels, 1, 1) / channels
            said.append(f"its stem of one channel is spread over {channels}")
    return said


def _counts(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


def refuse_random(
    report: LoadReport | None, groups: Sequence[LayerGroup], *, trained: Collection[str] = frozenset()
) -> None:
    """Refuse weights that leave a layer random in a layer group which is not trained.

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
            f"{report.source} leaves {len(random)} tensors random in layers that would stay frozen, e.g. {random[0]}",
            hint="Give weights that hold them, or train these layers: --strategy full, or --top-k with more groups.",
        )


def model_of_run(folder: Path) -> Path:
    """Return the model of a finished run where a run folder is named, else what is named.

    Raises:
        BackboneError: the run has no model yet, or the folder holds several runs.
    """
    if is_folder(folder) or not any((folder / name).is_file() for name in ("recipe.toml", "asked.toml")):
        return folder
    if is_folder(folder / "model"):
        if read_config(folder / "model").probe_at is not None:
            raise BackboneError(
                f"the model of {folder} classifies at an inner layer group: it is no backbone to go on from",
                hint="Name the backbone that it was trained from.",
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


def _sets(content: Any) -> list[str]:
    """Return under which names a file holds sets of weights, the one to take first."""
    if not isinstance(content, Mapping):
        return []
    return [key for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key]]


def _tensors(content: Any, file: Path, named: str) -> dict[str, Tensor]:
    if named and not (isinstance(content, Mapping) and isinstance(content.get(named), Mapping)):
        names = _sets(content)
        raise BackboneError(
            f"{file} holds no set of weights {named!r}",
            hint=f"It holds {', '.join(names)}." if names else "It holds one set only: leave the # out.",
        )
    while names := [named] if named else _sets(content):
        content, named = content[names[0]], ""
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise BackboneError(f"{file} holds no tensors by name")
    return tensors


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors without the prefix under which most of the network's keys stand, and all prefixes as good.

    Of these the averaged set is taken before the raw one. Other keys lose the usual prefixes of wrappers.
    """
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in own:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most] or [""]
    best.sort(key=lambda name: (_rank(name), len(name)))
    prefix = best[0]
    own_keys = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    others = {_bare(key, own): tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
    return {**others, **own_keys}, best


def _rank(prefix: str) -> int:
    return next((place for place, name in enumerate(CONTAINERS) if name in prefix.split(".")), len(CONTAINERS))


def _bare(key: str, own: Mapping[str, Tensor]) -> str:
    while key not in own:
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            break
        key = key[len(prefix) :]
    return key


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
