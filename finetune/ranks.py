"""The processes that a launcher has started for one run: which one this is, and what they tell each other.

Processes have a *rank*, from 0 on. All do the same in the same order, each on its part of every batch and of every
pass. What depends on time, disk or memory is decided by the first, which alone writes files and speaks. Where one
process runs, or inside `unshared`, nothing is shared and torch is not asked. No other module names torch.distributed.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.errors import FinetuneError, ResourceError

if TYPE_CHECKING:
    from torch import Tensor, nn

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun and accelerate launch set them
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
LONGEST = timedelta(days=7)  # that processes wait for the first, which may scan millions of images
T = TypeVar("T")


class LostProcessError(ResourceError):
    """When another process of a run has ended before the run has."""


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launcher says of this process: which of how many it is, on all machines and on this one."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


@dataclass(slots=True)
class _Group:
    """The processes of a run. `words` carries what is no tensor; None stands for all that there is."""

    here: Launched
    words: Any = None
    is_unshared: bool = False


_group: _Group | None = None
_store: Any = None
_num_joined = 0
_is_ours = False  # the connection: else it was there before


def launched() -> Launched:
    """Return what the environment says; one process where it does not say all that several need."""
    names = (*NEEDED[:2], "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    numbers = [os.environ.get(name, "").strip() for name in names]
    if not all(os.environ.get(name) for name in NEEDED) or not all(map(str.isdecimal, numbers[:2])):
        return Launched()
    rank, count = int(numbers[0]), int(numbers[1])
    local_rank, local_count = (int(text) if text.isdecimal() else None for text in numbers[2:])
    if count < 2:
        return Launched()
    return Launched(rank, count, rank if local_rank is None else local_rank, local_count or count)


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that a launcher has started, inside the block; with a single process nothing changes.

    Raises:
        ResourceError: the others cannot be reached, or the launcher asks to divide the network.
    """
    global _group
    here = launched()
    if here.count == 1 or _group is not None:
        yield
        return
    if any(os.environ.get(name, "").lower() in ("1", "true") for name in SHARDED):
        raise ResourceError(
            "the launcher asks for FSDP, DeepSpeed or Megatron, which divide the network: here each process holds all",
            hint="Start it with torchrun, or accelerate launch --multi_gpu.",
        )
    import torch.distributed as dist

    _group = _Group(here)
    try:
        with _reaching_others():
            _connect(here)
            _group.words = dist.new_group(backend="gloo", timeout=LONGEST)
        yield
    finally:
        _group = None  # the connection stays: who loses it would fail before this process has said why it ends


def _connect(here: Launched) -> None:
    """Connect to the other processes; on one machine over its loopback."""
    global _store, _num_joined, _is_ours
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized() and not _is_ours:  # by who called us, as Ray Train does
        _store = dist.distributed_c10d._get_default_store()
        return
    if here.local_count == here.count and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if _is_ours:
        _leave()
    else:
        _store, _, _ = next(rendezvous("env://"))
        _is_ours = True
        atexit.register(_leave)
    _num_joined += 1
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
        store=dist.PrefixStore(f"finetune/{_num_joined}", _store),  # type: ignore[attr-defined]
        rank=here.rank,
        world_size=here.count,
        timeout=LONGEST,
    )


def _leave() -> None:
    """Close the connection of the last run that was shared."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def is_together() -> bool:
    """Return whether this process is one of several of a run."""
    return _group is not None


def is_first() -> bool:
    """Return whether this process writes files, measures and reports."""
    return _group is None or _group.here.rank == 0


def count() -> int:
    """Return how many processes share what is done now."""
    return 1 if _group is None or _group.is_unshared else _group.here.count


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return 0 if _group is None or _group.is_unshared else _group.here.rank


def local_rank() -> int:
    """Return which of the processes on this machine this one is."""
    return 0 if _group is None else _group.here.local_rank


def local_count() -> int:
    """Return how many processes of the run are on this machine, whose cores and memory they share."""
    return 1 if _group is None else _group.here.local_count


def launcher() -> str:
    """Return the start of a command that launches as many processes, as this one was; empty for one."""
    if _group is None:
        return ""
    here = _group.here
    machines = f" --nnodes {here.count // here.local_count}" if here.local_count < here.count else ""
    return f"torchrun{machines} --nproc-per-node {here.local_count} -m "


def place() -> tuple[int, ...]:
    """Return what distinguishes this process's random numbers from the others'; nothing for the first."""
    return (rank(),) if rank() else ()


@contextmanager
def unshared() -> Iterator[None]:
    """Share nothing inside the block: each process that comes here does all of it itself."""
    before = _group is not None and _group.is_unshared
    if _group is not None:
        _group.is_unshared = True
    try:
        yield
    finally:
        if _group is not None:
            _group.is_unshared = before


def agreed(decide: Callable[[], T]) -> T:
    """Return what the first process decides, or does, alone while the others wait; they raise its errors (ours), too.

    What it returns must be picklable.
    """
    if count() == 1:
        return decide()
    if not is_first():
        value, error = _told((None, None))
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]
    try:
        with unshared():
            value = decide()
    except FinetuneError as error:
        _told((None, error))
        raise
    _told((value, None))
    return value


def _told(content: Any) -> Any:
    import torch.distributed as dist

    said = [content]
    with _reaching_others():
        dist.broadcast_object_list(said, src=0, group=_words())
    return said[0]


def gathered(own: T) -> list[T]:
    """Return what each process has, by rank, on the first; an empty list on others."""
    if count() == 1:
        return [own]
    import torch.distributed as dist

    found: list[Any] | None = [None] * count() if is_first() else None
    with _reaching_others():
        dist.gather_object(own, found, dst=0, group=_words())
    return found or []


def exchanged(own: T) -> list[T]:
    """Return what each process has, by rank, on all."""
    if count() == 1:
        return [own]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    with _reaching_others():
        dist.all_gather_object(found, own, group=_words())
    return found


def joined_rows(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the columns (N, ...) of batches (B, ...) on the CPU, those of all processes one after the other.

    On all but the first they have no rows: what is read from them must be `agreed`.
    """
    import torch

    everything = [batch for part in gathered(list(batches)) for batch in part]
    columns = tuple(torch.cat(column) for column in zip(*everything, strict=True)) if is_first() else ()
    empty = agreed(lambda: tuple(column[:0].clone() for column in columns)) if count() > 1 else ()
    return columns if is_first() else empty


def sum_up(tensors: Sequence[Tensor]) -> None:
    """Put into each tensor its sum over all processes, by one message; all are of one type and on one device."""
    if count() == 1:
        return
    import torch
    import torch.distributed as dist

    with torch.no_grad(), _reaching_others():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def share_model(model: nn.Module) -> None:
    """Give the weights and buffers of a model in all processes the values that they have in the first."""
    if count() == 1:
        return
    import torch.distributed as dist

    with _reaching_others():
        for tensor in (*model.parameters(), *model.buffers()):
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.data.copy_(whole)


def speaks() -> bool:
    """Return whether this process should say why the run ended: of several that fail, the first to ask."""
    if _store is None:
        return launched().local_rank == 0
    try:
        return int(_store.add("finetune/failed", 1)) == 1
    except RuntimeError:  # it has ended with the process that kept it
        return launched().rank == 0


def _words() -> Any:
    assert _group is not None
    return _group.words


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Turn torch's error for a broken connection into ours.

    Raises:
        LostProcessError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this run has ended, or cannot be reached",
            hint="Its own message, or the launcher's, says why.",
        ) from error
