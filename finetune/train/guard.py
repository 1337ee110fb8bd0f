"""What may go wrong at any line that computes, handled at the entry points: out of memory, a dead worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from finetune.data.loaders import lost_workers
from finetune.errors import ResourceError
from finetune.heap import freed_memory_kept, give_back
from finetune.process import is_unguarded, own_turn, unguarded_script
from finetune.train.memory import is_out_of_memory

SMALLER = "smaller images (--image-size) or a smaller backbone"
IN_A_RUN = f"fewer images at once (--micro-batch), {SMALLER}"
OF_A_MODEL = "fewer images at once (--batch-size)"


@contextmanager
def guarded(less: str = SMALLER, *, is_shared: bool = False) -> Iterator[None]:
    """Turn torch's errors for a dead worker or lack of memory, inside the block, into ours.

    Other threads wait for their turn, unless what is done goes beside others (`is_shared`). Freed memory is kept.
    `less` names what takes less memory. Where a step of training runs out, `out_of_memory` has said more.

    Raises:
        ResourceError: a process that decodes images died, memory ran out, or the process is no place for a run.
    """
    try:
        with nullcontext() if is_shared else own_turn(), lost_workers(), freed_memory_kept():
            yield
        if not is_shared:  # which may be short, and often
            give_back()
    except ResourceError as error:
        if "DataLoader worker" in str(error.__cause__) and is_unguarded():
            raise unguarded_script() from error
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_of_device = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
        cpu = ", or use the CPU (--device cpu)" if is_of_device else ""
        raise ResourceError("memory ran out", hint=f"Use {less}{cpu}.") from error
