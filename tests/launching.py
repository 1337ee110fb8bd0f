"""Work that several processes share, each a fork of this one, as a launcher would have started it."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.errors import FinetuneError

LONGEST = 240.0  # seconds until what hangs is killed


@dataclass(frozen=True)
class Process:
    """How one of them ended: what its work returned, or its error of ours, or what else was raised; None: killed."""

    value: Any = None
    error: FinetuneError | None = None
    raised: str = ""
    is_killed: bool = False


def free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


def launched(count: int, work: Callable[[int], Any]) -> list[Process]:
    """Do `work(rank)` in so many processes and return how each ended, by rank."""
    port = free_port()
    children = [_fork(rank, count, port, work) for rank in range(count)]
    ended, began = {}, time.monotonic()
    contents: dict[int, bytes] = dict.fromkeys(range(count), b"")
    while len(ended) < count:
        ready, _, _ = select.select([r for rank, (_, r) in enumerate(children) if rank not in ended], [], [], 1.0)
        for rank, (child, pipe) in enumerate(children):
            if pipe in ready and rank not in ended:
                part = os.read(pipe, 1 << 16)
                contents[rank] += part
                if not part:
                    os.waitpid(child, 0)
                    os.close(pipe)
                    ended[rank] = pickle.loads(contents[rank]) if contents[rank] else Process(is_killed=True)
        if time.monotonic() - began > LONGEST:
            for rank, (child, _) in enumerate(children):
                if rank not in ended:
                    os.kill(child, signal.SIGKILL)
    return [ended[rank] for rank in range(count)]


def values(processes: list[Process]) -> list[Any]:
    """Return what the work of each returned, once none has failed."""
    for process in processes:
        assert not process.is_killed and not process.raised and process.error is None, process
    return [process.value for process in processes]


def _fork(rank: int, count: int, port: int, work: Callable[[int], Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    here = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}}
    try:
        ended = Process(work(rank))
    except FinetuneError as error:
        ended = Process(error=error)
    except BaseException:
        ended = Process(raised=traceback.format_exc())
    with os.fdopen(writing, "wb") as pipe:
        pickle.dump(ended, pipe)
        pipe.flush()
    os._exit(0)
