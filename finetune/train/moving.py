"""What moves the weights of a phase: the optimiser, averages and factors beside it, and initial values."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune import ranks
from finetune.backbone.freeze import group_state
from finetune.checkpoint.state import TrainState, restore_optimiser
from finetune.optim import optimisers
from finetune.optim.initialisers import layers_of, scale_to_unit_variance
from finetune.randomness import derive, forked
from finetune.train.adapters import PREFIX as LORA
from finetune.train.adapters import Adapters
from finetune.train.averages import PREFIX as AVERAGE
from finetune.train.averages import Averages
from finetune.train.fit import Fit, Work, renewed_parameters
from finetune.types import Event, Phase
from finetune.wording import counted


def moving(
    fit: Fit, phase: Phase, state: TrainState, saved: dict[str, Tensor]
) -> tuple[torch.optim.Optimizer, Averages | None, Adapters | None]:
    """Return what moves the weights of a phase and what follows them, as they were when they were saved."""
    optim, adapters, averages = fit.settings.optim, _adapters(fit, phase, state), _averages(fit, phase)
    parameters = optimisers.parameter_groups(
        fit.model,
        phase.plan,
        fit.groups,
        lr=phase.lr,
        weight_decay=float(optim.weight_decay),
        head_lr=optim.head_lr,
        adapted=adapters.parameters if adapters else lambda group: (),
    )
    optimiser = optimisers.build(optim, parameters)
    if saved:
        restore_optimiser(optimiser, {k: v for k, v in saved.items() if not k.startswith((AVERAGE, LORA))})
        for part in (averages, adapters):
            if part is not None:
                part.restore(saved)
    return optimiser, averages, adapters


def connections_of(fit: Fit) -> tuple[str, ...]:
    """Return the weights of the head's layers if steps are to drop some of them."""
    if not fit.settings.regularise.drop_connect:
        return ()
    head = next(group for group in fit.groups if group.is_head)
    return tuple(name for name, kind in zip(head.parameters, head.kinds, strict=True) if kind == "matrix")


def to_unit_variance(fit: Fit, phase: Phase, work: Work) -> None:
    """Scale what a phase re-initialises on its first batch, or the first process's part of it."""
    inputs, _ = next(iter(work.train.epoch(phase=0)))
    layers = layers_of(fit.model, renewed_parameters(fit, phase))
    work.run.eval()
    with fit.accelerator.autocast():
        missed = scale_to_unit_variance(layers, lambda: work.run(inputs))
    ranks.share_model(fit.model)
    if missed:
        text = f"lsuv: {counted(len(missed), 'layer')} of {len(layers)} could not be observed and stay orthogonal"
        fit.on_event(Event.warning(text))


def _adapters(fit: Fit, phase: Phase, state: TrainState) -> Adapters | None:
    if all(item.trains != "lora" for item in phase.plan.groups):
        return None
    with forked(derive(fit.settings.seed, "lora", state.phase)):
        return Adapters(fit.model, phase.plan, fit.groups, fit.anchors)


def _averages(fit: Fit, phase: Phase) -> Averages | None:
    decay = fit.settings.regularise.ema
    names = group_state(fit.model, fit.groups, phase.plan.trained)
    return None if decay == "none" else Averages(fit.model, names, decay)
