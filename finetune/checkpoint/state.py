"""A checkpoint: weights, optimiser and the place in training, from which a run resumes exactly.

A checkpoint is a folder. It is written beside its place, with `complete.json`, which has the hash of
every other file, last, and then renamed; the one before stays beside it as NAME.before, in case the
last one is damaged. Nothing in it is executed: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import CheckpointError
from finetune.settings import FORMAT_VERSION
from finetune.types import EpochLine, Event, OnEvent, ignore
from finetune.whole import whole_folder
from finetune.wording import first_line

MODEL, OPTIMISER, STATE, COMPLETE = "model.safetensors", "optimiser.safetensors", "state.json", "complete.json"


@dataclass(slots=True)
class Best:
    """The epoch that would be delivered if training ended here, with its score (top1, mAP or R2) and loss on val."""

    score: float
    loss: float
    phase: int
    epoch: int


@dataclass(slots=True)
class TrainState:
    """Where training stands: the next step to do, what this epoch has summed up, which epoch counts.

    `phase` counts phases, `epoch` and `step` what is done inside the phase and the epoch.
    `history` holds the finished epochs' lines of metrics.jsonl.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    num_seen: int = 0
    best: Best | None = None
    num_without_better: int = 0
    is_initialised: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[EpochLine] = field(default_factory=list)

    def enter_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.loss_sum, self.num_correct, self.num_seen = epoch, 0, 0.0, 0, 0

    def enter_phase(self, phase: int) -> None:
        self.enter_epoch(0)
        self.phase, self.num_without_better, self.is_initialised = phase, 0, False


STATES = TypeAdapter(TrainState)  # a field of another type is found here


@dataclass(slots=True)
class Checkpoint:
    """What was read from a checkpoint folder."""

    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: TrainState


def save(
    place: Path,
    model: dict[str, Tensor],
    optimiser: dict[str, Tensor],
    state: TrainState,
    *,
    keeps_before: bool = True,
) -> None:
    """Write a checkpoint; the one that stood at its place becomes NAME.before, where that is kept.

    Raises:
        ResourceError: the disk is full or cannot be written.
    """
    with written_beside(place, keeps_before=keeps_before) as beside:
        save_file(model, beside / MODEL)
        save_file(optimiser, beside / OPTIMISER)
        content = {"format_version": FORMAT_VERSION, **asdict(state)}
        (beside / STATE).write_text(json.dumps(content), encoding="utf-8")
        said = {"format_version": FORMAT_VERSION, **_digests(beside)}
        (beside / COMPLETE).write_text(json.dumps(said), encoding="utf-8")


@contextmanager
def written_beside(place: Path, *, keeps_before: bool = True) -> Iterator[Path]:
    """Yield a new folder beside a place, and put it there when the block ends; until then the old one stays.

    Raises:
        ResourceError: the disk is full or cannot be written.
    """
    with whole_folder(place, before=_before(place) if keeps_before else None) as beside:
        try:
            yield beside
        except SafetensorError as error:
            raise OSError(str(error).rpartition("I/O error: ")[2]) from error


def load(place: Path, *, on_event: OnEvent = ignore) -> Checkpoint | None:
    """Return the checkpoint at a place, or, with a warning, the one before it when it is damaged; None: there is none.

    The damaged one is then removed, so that the next checkpoint does not push out the one that is whole.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole, or another version wrote them.
    """
    candidates = [path for path in places(place) if path.exists()]
    for path in candidates:
        if _is_whole(path):
            if path != candidates[0]:
                on_event(Event.warning(f"the checkpoint {place} is damaged; the one before it is used"))
                shutil.rmtree(place, ignore_errors=True)
            return _understood(path)
    if candidates:
        recipe = shlex.quote(str(place.parent.parent / "recipe.toml"))
        raise CheckpointError(
            f"the checkpoint {place} is damaged, and so is the one before it, where there was one",
            hint=f"Start again from the recipe: finetune run --recipe {recipe}",
        )
    return None


def load_whole(place: Path) -> Checkpoint | None:
    """Return the checkpoint at a place itself; None where there is none, or a damaged one."""
    return _understood(place) if _is_whole(place) else None


def places(place: Path) -> tuple[Path, Path]:
    """Return where a checkpoint and the one before it lie."""
    return place, _before(place)


def _before(place: Path) -> Path:
    return place.with_name(f"{place.name}.before")


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as flat tensors: `<index of the parameter>.<name>`, `group<index>.step`."""
    counted = {
        f"group{index}.step": torch.as_tensor(group["step"])
        for index, group in enumerate(optimiser.param_groups)
        if "step" in group  # some of timm's count there
    }
    return counted | {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        for index, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave; learning rates come from the schedule.

    An average lies in memory as its weight does, as it did before: other strides may round otherwise.

    Raises:
        CheckpointError: they are of another optimiser.
    """
    weights = dict(enumerate(weight for group in optimiser.param_groups for weight in group["params"]))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if index.startswith("group") and index[5:].isdecimal() and int(index[5:]) < len(optimiser.param_groups):
            optimiser.param_groups[int(index[5:])]["step"] = tensor.item()
            continue
        weight = weights.get(int(index) if index.isdecimal() else -1)
        if weight is None or not name:
            raise CheckpointError(f"the checkpoint is of another optimiser: it has a weight {key!r}")
        laid = torch.empty_like(weight, device="cpu").copy_(tensor) if tensor.shape == weight.shape else tensor
        state.setdefault(int(index), {})[name] = laid
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        CheckpointError: they are another model's.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is another model's: {first_line(error)}") from error


def _understood(path: Path) -> Checkpoint:
    """Return a checkpoint whose bytes are as `complete.json` says, but which may still hold anything."""
    try:
        return _read(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is not a valid checkpoint: {first_line(error)}",
            hint="Start again from the recipe: finetune run --recipe RUN/recipe.toml",
        ) from error


def _read(path: Path) -> Checkpoint:
    content = json.loads((path / STATE).read_text(encoding="utf-8"))
    check_format(path, content.pop("format_version", None))
    if content["best"] is not None and "top1" in content["best"]:  # as it was called while there was one task
        content["best"]["score"] = content["best"].pop("top1")
    state = STATES.validate_json(json.dumps(content), strict=True)
    return Checkpoint(load_file(path / MODEL), load_file(path / OPTIMISER), state)


def _is_whole(path: Path) -> bool:
    try:
        said = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        check_format(path, said.pop("format_version", FORMAT_VERSION))
        return bool(said == _digests(path))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def check_format(path: Path, version: object) -> None:
    """Check that this version of finetune reads what a file says it holds.

    Raises:
        CheckpointError: it does not.
    """
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version}; this version of finetune reads {FORMAT_VERSION}",
            hint="Use the version of finetune that wrote it (environment.json names it).",
        )


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for name in (MODEL, OPTIMISER, STATE):
        digest = blake2b(digest_size=16)
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        digests[name] = digest.hexdigest()
    return digests
