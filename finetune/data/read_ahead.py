"""Reading in threads while earlier batches are computed on: in order, a few batches at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from finetune.images.quiet import quiet

MOST_THREADS = 8
AHEAD = 3  # batches that are in the making while one is computed, itself included

Key = TypeVar("Key")
Read = TypeVar("Read")


def read_ahead(
    read: Callable[[Key], Read], batches: Iterable[Sequence[Key]], *, num_threads: int, ahead: int = AHEAD
) -> Iterator[list[Read]]:
    """Yield what `read` makes of each batch, at most `ahead` in the making; leaving early leaves no thread behind."""
    pool, order = ThreadPoolExecutor(num_threads), iter(batches)
    waiting: deque[list[Future[Read]]] = deque()
    try:
        with quiet():
            while True:
                for keys in islice(order, ahead - len(waiting)):
                    waiting.append([pool.submit(read, key) for key in keys])
                if not waiting:
                    return
                yield [item.result() for item in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
