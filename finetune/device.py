"""Where a run computes and in which arithmetic: devices, precision, the Accelerator."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from accelerate import Accelerator as Accelerator
from accelerate.optimizer import AcceleratedOptimizer as AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from finetune.errors import ResourceError

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def resolve_device(name: str) -> torch.device:
    """Yield the device of a name; "auto" is cuda, else mps, else cpu.

    Raises:
        ResourceError: this machine does not have it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if not there[name]:
        raise ResourceError(
            f"train.device = {name!r}: this machine has none that torch can use", hint="Use --device cpu or auto."
        )
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """Yield the arithmetic of the forward pass; "auto" is bfloat16 on a GPU that has it, else float32."""
    if name != "auto":
        if name == "float16" and device.type == "cpu":
            raise ResourceError("train.precision = 'float16' needs a GPU", hint="Use bfloat16 or float32 on a CPU.")
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def in_fast_layout(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, a convolutional one with its channels last, as convolutions are fastest."""
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    if num_convolutions > 1 and device.type != "mps":  # a transformer has one, of its patches
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def is_channels_last(tensor: Tensor) -> bool:
    """Tell whether the channels of images or feature maps (B, C, H, W) lie last in memory."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def available_memory() -> int:
    """Yield how many bytes of memory this process may still take: the machine's, or its container's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def free_memory(device: torch.device) -> int:
    """Yield how many bytes this process may still take on a device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_memory()


def accelerator(device: torch.device, precision: str) -> Accelerator:
    """Yield an Accelerator for a device and a precision, whatever was asked for before in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=MIXED[precision])
