"""Optimisers over layer groups: every trained parameter in one group, with its own learning rate.

To add one: a row in `OPTIMISERS`, its name in `values.OptimiserName`, a line in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from finetune.settings import OptimSection
from finetune.types import FreezePlan, LayerGroup


@dataclass(frozen=True, slots=True)
class Optimiser:
    """One of timm's optimisers: its name there, and what "auto" means with it.

    `lr_factor` is what a strategy's learning rate, which is AdamW's, is multiplied by; `averages` is how many
    numbers it keeps of each trained weight.
    """

    name: str
    lr_factor: float
    averages: int
    momentum: float | None = None  # None: it takes none
    arguments: dict[str, Any] = field(default_factory=dict)


def parameter_groups(
    model: nn.Module,
    plan: FreezePlan,
    groups: Sequence[LayerGroup],
    *,
    lr: float,
    weight_decay: float,
    head_lr: float = 1.0,
    adapted: Callable[[str], Sequence[nn.Parameter]] = lambda group: (),
) -> list[dict[str, Any]]:
    """Return the optimiser's groups: for each trained layer group, one with weight decay and one without.

    Layer group g trains at `lr * plan[g].lr_scale`, the head at `head_lr` times that. Norms, biases and what the
    network names in `no_weight_decay()` are not decayed. Of an adapted group factors are moved.
    """
    named = dict(model.named_parameters())
    spared = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    optimiser_groups = []
    for group in groups:
        rate = lr * plan[group.name].lr_scale * (head_lr if group.is_head else 1.0)
        is_adapted = plan[group.name].trains == "lora"
        moved = () if is_adapted else group.moved(plan[group.name].trains)
        for is_decayed in (True, False):
            chosen = [named[n] for n in moved if (named[n].ndim > 1 and n not in spared) is is_decayed]
            chosen += adapted(group.name) if is_adapted and is_decayed else ()
            if chosen:
                optimiser_groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "peak_lr": rate,
                        "weight_decay": weight_decay if is_decayed else 0.0,
                        "is_decayed": is_decayed,
                    }
                )
    return optimiser_groups


def build(optim: OptimSection, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser that a recipe names over parameter groups."""
    row = OPTIMISERS[optim.name]
    arguments = dict(row.arguments)
    if row.momentum is not None:
        arguments["momentum"] = row.momentum if optim.momentum == "auto" else optim.momentum
    optimiser: torch.optim.Optimizer = create_optimizer_v2(groups, opt=row.name, lr=groups[0]["lr"], **arguments)
    return optimiser


def set_momentum(optimiser: torch.optim.Optimizer, momentum: float) -> None:
    """Set the momentum of every group, or Adam's first beta."""
    for group in optimiser.param_groups:
        if "momentum" in group:
            group["momentum"] = momentum
        elif "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])


OPTIMISERS: dict[str, Optimiser] = {
    # Loshchilov & Hutter 2019, arXiv:1711.05101
    "adamw": Optimiser("adamw", 1.0, 2),
    # Kingma & Ba 2015, arXiv:1412.6980
    "adam": Optimiser("adam", 1.0, 2),
    "sgd": Optimiser("momentum", 100.0, 0, arguments={"momentum": 0.0}),
    # Polyak 1964; Sutskever et al. 2013
    "momentum": Optimiser("momentum", 10.0, 1, momentum=0.9),
    "nesterov": Optimiser("nesterov", 10.0, 1, momentum=0.9),
    # Duchi et al. 2011
    "adagrad": Optimiser("adagrad", 10.0, 1),
    # Zeiler 2012, arXiv:1212.5701
    "adadelta": Optimiser("adadelta", 1000.0, 2),
    # Tieleman & Hinton 2012
    "rmsprop": Optimiser("rmsprop", 1.0, 1, momentum=0.0),
    # Dozat 2016, with decoupled decay
    "nadamw": Optimiser("nadamw", 1.0, 2),
    # Chen et al. 2023, arXiv:2302.06675
    "lion": Optimiser("lion", 0.1, 1),
    # You et al. 2020, arXiv:1904.00962
    "lamb": Optimiser("lamb", 10.0, 2),
    # Jordan et al. 2024; vectors by AdamW
    "muon": Optimiser("muon", 10.0, 2),
}
