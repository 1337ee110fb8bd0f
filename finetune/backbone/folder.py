"""timm's folder of a model: config.json and model.safetensors, read and written.

`timm.create_model("local-dir:FOLDER", pretrained=True)` loads what `write` leaves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save_file
from timm.models import PretrainedCfg
from torch import Tensor, nn

from finetune.backbone.pools import AUTO, OURS
from finetune.bands import Depth
from finetune.errors import BackboneError
from finetune.images.decoding import decoding_steps
from finetune.tasks import TASKS, Task
from finetune.types import Preprocessing

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LABELS = "labels.txt"  # one class name per line, in order: what timm's scripts call a class map
SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
KNOWN = frozenset(field.name for field in fields(PretrainedCfg)) - SOURCES  # a newer timm may write more


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """What a config.json says: the architecture, its arguments, its data config, its class names."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    classes: tuple[str, ...] = ()
    probe_at: str | None = None
    value_range: tuple[float, float] | None = None
    depth: Depth = 8
    task: Task = "classify"
    thresholds: tuple[float, ...] = ()
    deviation: float | None = None
    pool: str = AUTO


def is_folder(path: Path) -> bool:
    """Return whether a path is a timm folder."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_config(folder: Path) -> FolderConfig:
    """Return what the config.json of a timm folder says.

    Raises:
        BackboneError: there is none, it is not JSON, it names no architecture, or what it names is of no use.
    """
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = raw.get("pretrained_cfg", raw)  # timm's old form is flat
        known = {key: value for key, value in config.items() if key in KNOWN}
        classes = raw.get("label_names") or config.get("label_names") or []
        num_classes = raw.get("num_classes", config.get("num_classes"))
        task, thresholds = _task(raw.get("task")), tuple(map(float, raw.get("thresholds") or ()))
        if task == "multilabel" and len(thresholds) != len(classes):
            raise ValueError(f"{len(thresholds)} thresholds of {len(classes)} classes")
        return FolderConfig(
            architecture=str(raw["architecture"]),
            model_args=checked_args(dict(raw.get("model_args", {}))),
            pretrained_cfg={**known, "num_classes": num_classes},
            classes=tuple(map(str, classes)) if isinstance(classes, list) else (),
            probe_at=None if raw.get("probe_at") is None else str(raw["probe_at"]),
            value_range=_range(raw.get("value_range")),
            depth=_depth(raw.get("depth", 8)),
            task=task,
            thresholds=thresholds,
            deviation=None if raw.get("deviation") is None else float(raw["deviation"]),
            pool=_pool(raw.get("pool")),
        )
    except FileNotFoundError:
        raise BackboneError(
            f"{folder} is not a timm folder: it has no {CONFIG}",
            hint="A timm folder holds config.json and model.safetensors.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BackboneError(f"{folder / CONFIG} cannot be used: {error!r}") from error


def _range(pair: Any) -> tuple[float, float] | None:
    if pair is None:
        return None
    low, high = map(float, pair)
    return low, high


def _depth(name: Any) -> Depth:
    if name not in get_args(Depth):
        raise ValueError(f"no depth {name!r}")
    depth: Depth = name
    return depth


def _task(name: Any) -> Task:
    if name is None:
        return "classify"
    if name not in TASKS:
        raise ValueError(f"no task {name!r}")
    task: Task = name
    return task


def _pool(name: Any) -> str:
    if name is None:
        return AUTO
    if name not in OURS:
        raise ValueError(f"no pool {name!r}")
    return str(name)


def checked_args(model_args: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for `timm.create_model` as they are.

    Raises:
        BackboneError: one of them makes timm read a file, which older versions of it unpickle.
    """
    astray = [key for key in model_args if key.startswith(("pretrained", "checkpoint")) or key == "cache_dir"]
    if astray:
        raise BackboneError(
            f"backbone.model_args names {astray[0]!r}, which says where weights come from, not what the network is",
            hint="Leave it out, and name weights with --weights.",
        )
    return model_args


def write(
    model: nn.Module,
    folder: Path,
    *,
    architecture: str,
    model_args: dict[str, Any],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    pretrained_cfg: dict[str, Any],
    num_classes: int | None = None,
    probe_at: str | None = None,
    task: Task = "classify",
    thresholds: Sequence[float] = (),
    deviation: float | None = None,
    pool: str = AUTO,
) -> None:
    """Write a model as a timm folder, with its class names (or only their number) and its data config.

    A `StagedClassifier` names its layer group as `probe_at`, a network with a pool of ours names that as `pool`; timm
    itself cannot load these. A range of values says what other programs have to make of images deeper than 8 bits
    before timm's transform sees them. A `task` other than one class per image is named too, with the probability from
    which each class counts as said, or with the deviation of the numbers of train.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_classes = len(classes) if num_classes is None else num_classes
    has_own_task = task != "classify"
    optional = {
        "label_names": list(classes) or None,
        "model_args": model_args,
        "pretrained_cfg": _data_config(preprocessing, pretrained_cfg, num_classes),
        "probe_at": probe_at,
        "pool": pool if pool in OURS else None,
        "decoding": list(decoding_steps(preprocessing)),
        "value_range": preprocessing.value_range,
        "depth": preprocessing.depth if preprocessing.bands.is_full else None,
        "task": task if has_own_task else None,
        "activation": TASKS[task].activation if has_own_task else None,
        "deviation": deviation,
        "thresholds": list(thresholds) or None,
    }
    config: dict[str, Any] = {"architecture": architecture, "num_classes": num_classes}
    config |= {key: value for key, value in optional.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    if classes and not any(name.splitlines()[1:] for name in classes):
        (folder / LABELS).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    save_file(plain_tensors(model.state_dict()), folder / WEIGHTS)


def _data_config(preprocessing: Preprocessing, pretrained_cfg: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Return timm's data config of a model."""
    kept = ("first_conv", "classifier", "license", "pool_size", "fixed_input_size", "tag")
    return {
        **{key: pretrained_cfg[key] for key in kept if pretrained_cfg.get(key) is not None},
        "num_classes": num_classes,
        "custom_load": False,
        "input_size": [preprocessing.channels, *preprocessing.image_size],
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
    }


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model's state so that they share no memory, as safetensors wants them."""
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
