"""`fit_phases` by itself: what two epochs lose on three layouts, that it resumes, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.backbone.groups import layer_groups
from finetune.checkpoint.state import Checkpoint, TrainState
from finetune.device import Accelerator
from finetune.optim.losses import criterion_of
from finetune.randomness import forked
from finetune.settings import LossSection
from finetune.strategy.strategies import Choice, phases
from finetune.train.loop import Fit, FitSettings, Work
from finetune.train.phases import fit_phases

CPU = torch.device("cpu")
# Losses of the two epochs, on this data, from these weights: alike under torch 2.6 and 2.14. Kernels round otherwise
# on other processors, hence the tolerance.
LOSSES = {
    ("full", "test_resnet"): [1.1018, 1.0676],
    ("top-k", "test_vit"): [0.9849, 0.7306],
    ("head-only", "test_convnext"): [1.1402, 1.0872],
}


class Drawn:
    """Twelve images of three classes, told apart by their brightness, in three batches; the order is drawn."""

    num_images = 12

    def __init__(self, *, is_shuffled: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.targets = torch.arange(12) % 3
        noise = torch.from_numpy(rng.normal(size=(12, 3, 32, 32)).astype(np.float32))
        self.images = noise + self.targets.view(-1, 1, 1, 1) - 1
        self.is_shuffled = is_shuffled

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int = 0, *, phase: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.arange(12)
        if self.is_shuffled:
            order = np.random.default_rng((phase, epoch)).permutation(12)
        for batch in np.split(order, 3)[start:]:
            yield self.images[batch], self.targets[batch]


def network(name: str) -> nn.Module:
    with forked(0):
        return timm.create_model(name, num_classes=3, pretrained=False)


def fit_of(model: nn.Module, *, kept: list[Any] | None = None, stop_after: int | None = None) -> Fit:
    settings = FitSettings("adamw", 0.01, "cosine", 0.1, 1.0, criterion_of(LossSection()), None, None, seed=0)
    steps = [0]

    def last(model: nn.Module, optimiser: dict[str, Tensor], now: TrainState) -> None:
        if kept is not None:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            kept.append(Checkpoint(weights, optimiser, TrainState(**{f: getattr(now, f) for f in now.__slots__})))

    def raise_if_asked(save: Any = None) -> None:
        steps[0] += 1
        if steps[0] == stop_after:
            save()
            raise InterruptedError

    keeper = SimpleNamespace(last=last, best=lambda *_: None)
    work = Work(model, Drawn(), Drawn(is_shuffled=False))
    return Fit(
        model, layer_groups(model), lambda _: work, settings, Accelerator(CPU, "float32"), keeper,
        lambda _: None, SimpleNamespace(raise_if_asked=raise_if_asked),
    )  # fmt: skip


def planned(strategy: str, model: nn.Module) -> Any:
    return phases(Choice(strategy, epochs=2, lr=1e-3, layer_decay=0.7, top_k=1), layer_groups(model))


@pytest.mark.parametrize(("strategy", "name"), LOSSES)
def test_two_epochs_lose_what_they_lost_when_this_was_written(strategy: str, name: str) -> None:
    model = network(name)
    end = fit_phases(fit_of(model), planned(strategy, model), fresh=network(name))
    assert [row.train_loss for row in end.history] == pytest.approx(LOSSES[strategy, name], rel=1e-2)


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_what_is_stopped_at_a_step_goes_on_to_the_same_bits(stop_after: int) -> None:
    whole = network("test_resnet")
    expected = fit_phases(fit_of(whole), planned("top-k", whole), fresh=network("test_resnet"))
    model, kept = network("test_resnet"), []
    with pytest.raises(InterruptedError):
        fit_phases(
            fit_of(model, kept=kept, stop_after=stop_after), planned("top-k", model), fresh=network("test_resnet")
        )
    again = network("test_resnet")
    resumed = fit_phases(fit_of(again), planned("top-k", again), fresh=network("test_resnet"), resumed=kept[-1])
    assert resumed.history == expected.history
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in whole.state_dict().items())


def test_what_is_frozen_stays_to_the_bit() -> None:
    model, before = network("test_resnet"), network("test_resnet").state_dict()
    fit_phases(fit_of(model), planned("head-only", model), fresh=network("test_resnet"))
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {name for group in layer_groups(model) if group.is_head for name in group.parameters}
