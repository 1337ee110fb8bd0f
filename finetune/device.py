"""Where a run computes and in which arithmetic: devices, precision, the Accelerator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import psutil
import torch
from accelerate import Accelerator as WholeAccelerator
from accelerate.optimizer import AcceleratedOptimizer as AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from finetune import ranks
from finetune.errors import RecipeError, ResourceError
from finetune.heap import give_back
from finetune.process import num_cores
from finetune.settings import TrainSection
from finetune.threads import fastest_threads, threads_at
from finetune.wording import counted

LAUNCHED = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK",
)  # fmt: skip
SHARED = (PartialState, AcceleratorState, GradientState)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LEAST_MOST = 16  # threads that may be asked for on any machine: a run may have begun on a larger one
MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is cuda, else mps, else cpu.

    Raises:
        ResourceError: this machine does not have it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if name not in there:
        raise RecipeError(f"train.device = {name!r} is not one of auto, {', '.join(there)}")
    if not there[name]:
        raise ResourceError(
            f"train.device = {name!r}: this machine has none that torch can use", hint="Use --device cpu or auto."
        )
    return torch.device(name)


def _take_own(device: torch.device) -> None:
    """Have "cuda" mean this process's own GPU, where several processes of a run are on the machine.

    Raises:
        ResourceError: there is none for it.
    """
    if not ranks.is_together() or device.type == "cpu":
        return
    here, most = ranks.local_rank(), torch.cuda.device_count()
    if here >= most:
        raise ResourceError(
            f"{counted(ranks.local_count(), 'process', 'processes')} on a machine with {counted(most, 'GPU')} for them",
            hint="Start at most one process for each GPU, or use the CPU: --device cpu.",
        )
    torch.cuda.set_device(here)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the arithmetic of the forward pass; "auto" is bfloat16 on a GPU whose units compute in it, else float32.

    GPUs before Ampere (V100, T4) emulate bfloat16, many times slower than they compute in float32.
    """
    if name != "auto":
        if name == "float16" and device.type == "cpu":
            raise ResourceError("train.precision = 'float16' needs a GPU", hint="Use bfloat16 or float32 on a CPU.")
        return name
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def in_fast_layout(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, a convolutional one with its channels last, which is fastest."""
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    if num_convolutions > 1 and device.type != "mps":  # a transformer has one, of its patches
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether the channels of images or feature maps (B, C, H, W) lie last in memory."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def available_memory(*, cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many bytes of memory this process may still take: the machine's, or what its containers leave.

    Of several processes of a run on the machine each has its share.
    """
    give_back()
    limits = (_left_in(group, names) for group, names in _groups(cgroups, own))
    free = min([int(psutil.virtual_memory().available), *(left for left in limits if left is not None)])
    return max(0, free) // ranks.local_count()


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def _groups(cgroups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield this process's memory groups, the innermost first: a group is bound by those that it lies in.

    Inside a container the path may be that of the host, which is not to be seen there; its root always is.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    paths = {"0": "/", "memory": "/"}
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths |= {name: path for name in ("0" if number == "0" else "", *controllers.split(",")) if name in paths}
    for root, path, names in ((cgroups, paths["0"], V2), (cgroups / "memory", paths["memory"], V1)):
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            if ".." not in group.parts:
                yield root / group, names


def _left_in(group: Path, names: tuple[str, str, str]) -> int | None:
    """Return what a group has left; pages of files not in use are given back when they are needed."""
    limit, usage, idle = names
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None
    try:
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - used + min(used, int(rows.get(idle, 0)))
    except (OSError, ValueError):
        return most - used


def free_memory(device: torch.device) -> int:
    """Return how many bytes this process may still take on a device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_memory()


def autocasting(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what opens the arithmetic of a precision on a device, around a forward pass."""
    resolved = resolve_precision(precision, device)
    if resolved == "float32":
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, resolved))


def reserve_workspace(device: torch.device) -> None:
    """Have cuBLAS, when it starts, take the workspace with which it is deterministic.

    Raises:
        ResourceError: it was started without; it reads that once in a process.
    """
    if device.type != "cuda" or WORKSPACE in os.environ:
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise ResourceError(
            f"train.deterministic: CUDA was already used in this process, without {WORKSPACE}",
            hint=f"Set {WORKSPACE}=:4096:8 in the environment before Python starts.",
        )
    os.environ[WORKSPACE] = ":4096:8"


@contextmanager
def deterministic(device: torch.device, *, is_asked: bool = True) -> Iterator[None]:
    """Have torch use only deterministic kernels inside the block, if that is asked for.

    Raises:
        ResourceError: CUDA was used before it could be asked to be deterministic.
    """
    if not is_asked:
        yield
        return
    reserve_workspace(device)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _as_one_process() -> Iterator[None]:
    """Hide what launchers and clusters say of other processes inside the block: Accelerate would wait for them."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class Accelerator(WholeAccelerator):  # type: ignore[misc]
    """An Accelerator that shares nothing with others in this process: neither affects the other."""

    def __init__(self, device: torch.device, precision: str) -> None:
        """Compute on a device and in a precision.

        Raises:
            ResourceError: the device cannot compute in it.
        """
        self._shared = [(kind, type(kind._shared_state)()) for kind in SHARED]
        self._autocasting = autocasting(device, precision)
        with self.apart(), _as_one_process():
            super().__init__(cpu=device.type == "cpu", mixed_precision=MIXED[precision])

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Have what Accelerate keeps for a whole process be this one's own inside the block."""
        before = [(kind, kind._shared_state) for kind in SHARED]
        try:
            for kind, state in self._shared:
                kind._shared_state = state
            yield
        finally:
            for kind, state in before:
                kind._shared_state = state

    def autocast(self, *_: Any) -> AbstractContextManager[Any]:
        return self._autocasting()

    def prepare(self, *args: Any, **more: Any) -> Any:
        with self.apart():
            return super().prepare(*args, **more)

    def backward(self, *args: Any, **more: Any) -> None:
        with self.apart():
            super().backward(*args, **more)

    def clip_grad_norm_(self, *args: Any, **more: Any) -> Any:
        with self.apart():
            return super().clip_grad_norm_(*args, **more)

    def free_memory(self, *args: Any) -> Any:
        """Release what was prepared; on a CPU without collecting all garbage, which takes longer than a phase."""
        if self.device.type == "cpu":
            for name in ("_models", "_optimizers", "_schedulers", "_dataloaders"):
                setattr(self, name, [])
            return list(args)
        with self.apart():
            return super().free_memory(*args)


def _auto_threads(device: torch.device) -> tuple[int, str]:
    """Return how many threads compute on a device, and a note for the user."""
    usual = torch.get_num_threads()
    if device.type != "cpu":
        return usual, ""
    if ranks.is_together():  # all are at work at once: nothing is to be timed
        return num_cores(), ""
    threads = fastest_threads()
    note = f"other work keeps this machine busy: computing with {counted(threads, 'thread')} of {usual}, which is"
    return threads, f"{note} faster now (--threads sets it)" if threads < usual else ""


@dataclass(frozen=True, slots=True)
class Compute:
    """How a recipe is computed on this machine, every "auto" of it settled but the number of workers.

    That one depends on how many images a pass has (see `data.loaders.auto_workers`).
    """

    device: torch.device
    precision: str
    is_deterministic: bool
    workers: int | Literal["auto"]
    threads: int
    note: str = ""  # what a user should know of it
    processes: int = 1  # that share the run

    @classmethod
    def of(cls, train: TrainSection, *, threads: int | None = None) -> Compute:
        """Settle what a recipe says about it; `threads` is what auto was before, for a resumed run.

        Raises:
            ResourceError: this machine does not have the device, or the device not the precision; or CUDA was
                used before it could be asked to be deterministic.
        """
        device = resolve_device(train.device)
        _take_own(device)
        if train.deterministic:
            reserve_workspace(device)  # before CUDA is used
        precision = resolve_precision(train.precision, device)
        if train.threads != "auto" and train.threads > (most := max(LEAST_MOST, 4 * num_cores())):
            raise ResourceError(
                f"train.threads = {train.threads}: this process has {counted(num_cores(), 'core')}",
                hint=f"Threads beyond the cores wait for each other; {most} is the most. Leave out --threads.",
            )
        settled = train.threads if train.threads != "auto" else threads
        count, note = (settled, "") if settled is not None else _auto_threads(device)
        return cls(device, precision, train.deterministic, train.workers, count, note, ranks.count())

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what opens the arithmetic around a forward pass."""
        return autocasting(self.device, self.precision)()

    def accelerator(self) -> Accelerator:
        """Return an Accelerator of its own, whatever was asked for before in this process."""
        return Accelerator(self.device, self.precision)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have torch compute like this inside the block: its threads, and deterministic kernels if asked for.

        Raises:
            ResourceError: CUDA was used before it could be asked to be deterministic.
        """
        with threads_at(self.threads), deterministic(self.device, is_asked=self.is_deterministic):
            yield
