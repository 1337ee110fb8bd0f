"""What a run ran on: versions, device, commit, command line; and the doctor's findings."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from finetune.backbone import automatic
from finetune.backbone.hub import hub_is_reachable
from finetune.data.listing import counted
from finetune.places import cache_folder

PACKAGES = (
    "finetune", "torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "pillow", "numpy",
    "torchmetrics", "onnx", "onnxscript", "onnxruntime", "pydantic", "typer", "rich", "matplotlib",
    "pyarrow",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Yield the environment as it stands in environment.json."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def packages() -> dict[str, str]:
    """Yield the versions of what the tool stands on; "-" for what is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def devices() -> dict[str, str]:
    """Yield the devices that torch can use, by name."""
    found = {"cpu": f"{counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def doctor() -> dict[str, Any]:
    """Yield what a bug report needs: versions, devices, folders, and whether the model hub answers."""
    return {
        **{key: value for key, value in describe().items() if key not in ("command", "commit")},
        "hub_is_reachable": hub_is_reachable(),
        "auto_backbone": automatic.chosen().name,
        "cache": str(cache_folder()),
        "hub_cache": str(Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()),
    }


def _commit() -> str | None:
    """Yield the commit of the tool's own checkout, where it runs from one."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
