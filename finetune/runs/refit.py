"""The refit: the chosen numbers once more, on train and val together, for the best number of epochs.

The first fit has chosen on val; what it chose (phases, learning rates along the same schedule, the number
of epochs in each phase) is now fixed, and nothing is left for val to decide. So the refit trains on val
too, and can no longer be measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune import ranks
from finetune.checkpoint import state
from finetune.checkpoint.run_folder import RunFolder
from finetune.checkpoint.state import TrainState
from finetune.data.split import val_in_train
from finetune.prepare.batches import Feeder
from finetune.prepare.inputs import reloaded
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import with_head
from finetune.runs.signals import Stop
from finetune.runs.training import train
from finetune.strategy.strategies import up_to_epoch
from finetune.types import Event, OnEvent
from finetune.wording import counted

FIRST = "first fit"


@dataclass(frozen=True, slots=True)
class Refit:
    """The inputs of the refit, what fed it, and its epochs."""

    prepared: Prepared
    feeder: Feeder
    num_epochs: int

    @property
    def num_images(self) -> int:
        return len(self.prepared.manifest.split("train"))


def refit(folder: RunFolder, prepared: Prepared, first: TrainState, *, stop: Stop, on_event: OnEvent) -> Refit:
    """Train a fresh network on train and val as the first fit was trained, up to the epoch it would deliver.

    Its checkpoints lie in refit/ of the run folder: a refit that is stopped goes on exactly.
    """
    assert first.best is not None  # the first fit was measured on val
    manifest = val_in_train(prepared.manifest)
    done = [line.phase for line in first.history[: first.best.epoch]]
    again = replace(
        prepared,
        manifest=manifest,
        backbone=with_head(prepared.recipe, reloaded(prepared)),
        phases=up_to_epoch(prepared.phases, done),
    )
    images = counted(len(manifest.split("train")), "image")
    text = f"refit: {counted(len(done), 'epoch')} on {images}of train and val"
    on_event(Event.message(text))

    def watch(event: Event) -> None:
        if event.kind == "epoch":  # without a val there is nothing to draw but progress
            on_event(Event.progress("refit", event.facts["epoch"], len(done)))
        else:
            on_event(event)

    checkpoint = ranks.agreed(lambda: state.load(folder.refit.last, on_event=on_event))
    trained = train(folder.refit, again, checkpoint, stop=stop, on_event=watch, led_by=first.history)
    return Refit(again, trained.feeder, len(trained.state.history))
