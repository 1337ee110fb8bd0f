"""What a run ran on: versions, devices, commit, command line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from finetune.wording import counted

PACKAGES = (
    "finetune", "torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "pillow", "numpy",
    "torchmetrics", "onnx", "onnxscript", "onnxruntime", "pydantic", "typer", "rich", "matplotlib",
    "pyarrow",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return the environment as it stands in environment.json."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(packages()),
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


@cache
def packages() -> dict[str, str]:
    """Return the versions of what the tool stands on; "-" for what is not installed. Read once in a process."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return versions


def devices() -> dict[str, str]:
    """Return the devices that torch can use, by name."""
    devices_by_name = {"cpu": f"{counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        devices_by_name[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if torch.backends.mps.is_available():
        devices_by_name["mps"] = "Apple GPU"
    return devices_by_name


@cache
def _commit() -> str | None:
    """Return the commit of the tool's own checkout, where it runs from one."""
    home = Path(__file__).resolve().parents[1]
    if not (home / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
