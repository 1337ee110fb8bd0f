"""Fits in memory, of a dozen images: what tests of the loop and of every option of training share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from finetune import recipe as recipes
from finetune.backbone.groups import layer_groups
from finetune.backbone.load import architecture, load
from finetune.checkpoint.state import Checkpoint, TrainState
from finetune.device import Accelerator
from finetune.randomness import forked
from finetune.strategy.strategies import Choice, phases
from finetune.train.fit import Fit, Work
from finetune.train.phases import fit_phases
from finetune.train.settings import FitSettings

CPU = torch.device("cpu")


class Drawn:
    """Twelve images of three classes, told apart by their brightness, in three batches; the order is drawn."""

    num_images = 12

    def __init__(self, *, is_shuffled: bool = True, side: int = 32) -> None:
        rng = np.random.default_rng(0)
        self.targets = torch.arange(12) % 3
        noise = torch.from_numpy(rng.normal(size=(12, 3, side, side)).astype(np.float32))
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


def network(name: str, *, pool: str = "auto") -> nn.Module:
    """Return a network without pretrained weights; one with another pool has 5 x 5 positions in its last map."""
    with forked(0):
        if pool == "auto":
            return timm.create_model(name, num_classes=3, pretrained=False)
        of = architecture(name, pretrained=False, model_args={"output_stride": 8})
        return load(replace(of, pool=pool), num_classes=3, image_size=40).model


def fit_of(
    model: nn.Module,
    *,
    kept: list[Any] | None = None,
    stop_after: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Fit:
    """Return a fit of the images above in memory; `kept` takes its checkpoints, and it stops after so many steps."""
    recipe = recipes.load(overrides={"optim.weight_decay": 0.01, **(overrides or {})})
    settings = FitSettings.of(recipe)
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
    side = 32 if recipe.backbone.pool == "auto" else 40
    work = Work(model, Drawn(side=side), Drawn(is_shuffled=False, side=side))
    return Fit(
        model, layer_groups(model), lambda _: work, settings, Accelerator(CPU, "float32"), keeper,
        lambda _: None, SimpleNamespace(raise_if_asked=raise_if_asked),
    )  # fmt: skip


def planned(strategy: str, model: nn.Module, *, lr: float = 1e-3) -> Any:
    """Return the phases of two epochs."""
    return phases(Choice(strategy, epochs=2, lr=lr, layer_decay=0.7, top_k=1), layer_groups(model))


def assert_resumes_to_the_same_bits(
    strategy: str, name: str, overrides: Mapping[str, Any], *, lr: float = 1e-3
) -> TrainState:
    """See that two epochs that are stopped at their sixth step go on to the same bits, and return where they end."""
    fresh = partial(network, name, pool=overrides.get("backbone.pool", "auto"))
    whole = fresh()
    plan = planned(strategy, whole, lr=lr)
    expected = fit_phases(fit_of(whole, overrides=overrides), plan, fresh=fresh())
    model, kept = fresh(), []
    with pytest.raises(InterruptedError):
        fit_phases(fit_of(model, kept=kept, stop_after=6, overrides=overrides), plan, fresh=fresh())
    again = fresh()
    resumed = fit_phases(fit_of(again, overrides=overrides), plan, fresh=fresh(), resumed=kept[-1])
    assert resumed.history == expected.history
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in whole.state_dict().items())
    return expected
