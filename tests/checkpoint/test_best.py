"""The weights to deliver: those that a checkpoint speaks of are kept, and found again at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.checkpoint import best, state
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import Best, TrainState
from finetune.errors import CheckpointError


def wanted(epoch: int) -> Best:
    return Best(0.5, 1.0, 0, epoch)


def keep(folder: RunFolder, epoch: int) -> None:
    best.keep(folder, {"weight": torch.full((1,), float(epoch))}, TrainState(best=wanted(epoch)))


def speak(folder: RunFolder, epoch: int) -> None:
    """Write a last checkpoint that speaks of an epoch."""
    state.save(folder.last, {"weight": torch.zeros(1)}, {}, TrainState(best=wanted(epoch)))


def epochs(folder: RunFolder) -> list[str]:
    return sorted(place.name for place in folder.best.parent.glob("best*"))


def test_what_either_checkpoint_speaks_of_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        keep(folder, epoch)
        speak(folder, epoch)
    best.drop_unspoken(folder)
    assert epochs(folder) == ["best-2", "best-3"]


def test_the_epoch_to_deliver_is_found_wherever_it_lies_and_settled(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep(folder, 1)
    keep(folder, 2)
    assert best.load(folder, wanted(1)).model["weight"].item() == 1
    best.settle(folder, wanted(1))
    best.settle(folder, wanted(1))  # again, as a killed process would
    assert epochs(folder) == ["best"]
    assert best.load(folder, wanted(1)).model["weight"].item() == 1


@pytest.mark.parametrize("epoch", [None, 7])
def test_an_epoch_that_is_not_there_is_an_error_with_the_recipe(tmp_path: Path, epoch: int | None) -> None:
    folder = RunFolder(tmp_path)
    keep(folder, 1)
    with pytest.raises(CheckpointError, match="no longer holds the best weights") as caught:
        best.load(folder, None if epoch is None else wanted(epoch))
    assert str(folder.recipe) in caught.value.hint


def test_damaged_weights_are_not_delivered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep(folder, 1)
    (folder.best.with_name("best-1") / state.MODEL).write_bytes(b"")
    with pytest.raises(CheckpointError):
        best.settle(folder, wanted(1))
