"""The weights of the epoch to deliver: named by their epoch while a run trains, `best` once it has ended.

Two checkpoints of the place in training are kept, and each names an epoch to deliver, whose weights are kept too.
Other weights are removed once the last checkpoint is written, so that whenever a run is killed, its weights are there.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from finetune.checkpoint import state
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import Best, Checkpoint, TrainState
from finetune.errors import CheckpointError
from finetune.whole import put


def keep(folder: RunFolder, model: dict[str, Tensor], now: TrainState) -> None:
    """Write the weights of the epoch that would be delivered now.

    Raises:
        ResourceError: the disk is full or cannot be written.
    """
    assert now.best is not None  # that is why they are kept
    state.save(_place(folder, now.best.epoch), model, {}, now, keeps_before=False)


def drop_unspoken(folder: RunFolder) -> None:
    """Remove weights of epochs that neither of the last two checkpoints names."""
    spoken = {_spoken(place) for place in state.places(folder.last)}
    for place in _by_epoch(folder):
        if place.name not in {_place(folder, epoch).name for epoch in spoken if epoch is not None}:
            shutil.rmtree(place, ignore_errors=True)


def load(folder: RunFolder, wanted: Best | None) -> Checkpoint:
    """Return the checkpoint of the epoch to deliver.

    Raises:
        CheckpointError: none here is whole and of this epoch.
    """
    return _found(folder, wanted)[1]


def settle(folder: RunFolder, wanted: Best | None) -> None:
    """Give the weights of the epoch to deliver their final name, and remove those of other epochs."""
    place, _ = _found(folder, wanted)
    if place != folder.best:
        put(place, folder.best)
    for other in _by_epoch(folder):
        shutil.rmtree(other, ignore_errors=True)


def _found(folder: RunFolder, wanted: Best | None) -> tuple[Path, Checkpoint]:
    for place in (*_by_epoch(folder), folder.best):
        checkpoint = state.load_whole(place)
        if checkpoint is not None and wanted is not None and checkpoint.state.best == wanted:
            return place, checkpoint
    raise CheckpointError(
        f"{folder.best.parent} no longer holds the best weights, those of the epoch to deliver",
        hint=f"Start again from the recipe: finetune run --recipe {shlex.quote(str(folder.recipe))}",
    )


def _place(folder: RunFolder, epoch: int) -> Path:
    return folder.best.with_name(f"{folder.best.name}-{epoch}")


def _by_epoch(folder: RunFolder) -> Iterator[Path]:
    return iter(sorted(folder.best.parent.glob(f"{folder.best.name}-*")))


def _spoken(checkpoint: Path) -> int | None:
    """Return the epoch to deliver that a checkpoint names."""
    try:
        return int(json.loads((checkpoint / state.STATE).read_text(encoding="utf-8"))["best"]["epoch"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
