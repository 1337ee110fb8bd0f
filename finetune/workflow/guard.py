"""What may go wrong at any line that computes, and is told at the entry points: memory runs out, a worker dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.data.loaders import lost_workers
from finetune.errors import ResourceError
from finetune.train.memory import is_out_of_memory

SMALLER = "smaller pictures (--image-size) or a smaller backbone"
IN_A_RUN = f"fewer images at once (--micro-batch), {SMALLER}"
OF_A_MODEL = "fewer images at once (--batch-size)"


@contextmanager
def guarded(less: str = SMALLER) -> Iterator[None]:
    """Turn what torch says, inside the block, of a dead worker or of memory that ran out into our errors.

    `less` names what takes less memory. Where a step of training runs out, `out_of_memory` has said more.

    Raises:
        ResourceError: a process that decodes images died, or memory ran out.
    """
    try:
        with lost_workers():
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_of_device = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
        cpu = ", or compute on the processor (--device cpu)" if is_of_device else ""
        raise ResourceError("memory ran out", hint=f"Take {less}{cpu}.") from error
