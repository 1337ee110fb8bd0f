"""Which weights are on this machine: installed as a package, or in the caches of the hub and of torch.

No torch, no network.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from huggingface_hub import constants

from finetune.backbone import packaged
from finetune.backbone.catalogue import PACKAGE, Weights

SUFFIXES = frozenset({".safetensors", ".bin", ".pth", ".npz"})


def place_of(weights: Weights | None) -> Path | None:
    """Return where some weights are on this machine; None if they would have to be fetched."""
    if weights is None:
        return None
    if weights.hub == PACKAGE:
        return Path(str(files("finetune")))
    if weights.hub:
        return packaged.packaged_file_of(weights.hub.removeprefix("timm/")) or _in_hub_cache(weights.hub)
    file = torch_checkpoints() / weights.file
    return file if file.is_file() else None


def torch_checkpoints() -> Path:
    """Return the folder in which torch.hub keeps checkpoints, as `torch.hub.get_dir` finds it."""
    default = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(default) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def _in_hub_cache(name: str) -> Path | None:
    """Return the weights file in the snapshot that the hub's cache marks as the newest."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        kept = sorted(file for file in snapshot.iterdir() if file.suffix in SUFFIXES and file.is_file())
    except (OSError, ValueError):
        return None
    return kept[-1] if kept else None  # of two forms, that of safetensors
