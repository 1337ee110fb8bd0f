"""LoRA: of a matrix, only a product of two small ones that is added to it is trained.

The network stays plain: before a step's forward pass its matrices are replaced by W + B A for that call, and after the
step it is set to them, so that val, checkpoints and exports see whole weights under their own names, and there is
nothing to merge. Letters: R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finetune.types import FreezePlan, LayerGroup, lora_rank

PREFIX = "lora."  # of their names in a checkpoint


class Adapters:
    """The factors A (R, in) and B (out, R) of every matrix that a phase adapts; a convolution's is (out, in * H * W).

    B begins at zero, so that the network does too. Where a matrix has no such rank, R is the one that it has.
    Source: Hu et al. 2021, arXiv:2106.09685; its scale alpha / R is 1 here.
    """

    def __init__(
        self, model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], base: Mapping[str, Tensor]
    ) -> None:
        """Take the matrices as they were before anything was added (where not in `base`: as they are), and draw A."""
        self.own = dict(model.named_parameters())
        self.base: dict[str, Tensor] = {}
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.of_group: dict[str, list[str]] = {}
        for group in groups:
            item = plan[group.name]
            for name in group.moved("lora") if item.trains == "lora" else ():
                weight = self.own[name]
                rank = lora_rank(tuple(weight.shape), item.rank)
                inner, outer = torch.empty(rank, weight[0].numel()), torch.zeros(len(weight), rank)
                nn.init.kaiming_uniform_(inner, a=math.sqrt(5))
                self.base[name] = base[name] if name in base else weight.detach().clone()
                self.factors[name] = nn.Parameter(inner.to(weight)), nn.Parameter(outer.to(weight))
                self.of_group.setdefault(group.name, []).append(name)

    def parameters(self, group: str) -> list[nn.Parameter]:
        """Return the factors of a layer group."""
        return [factor for name in self.of_group.get(group, ()) for factor in self.factors[name]]

    def weights(self) -> dict[str, Tensor]:
        """Return every adapted matrix as it is now, W + B A, in the shape of its layer."""
        return {
            name: self.base[name] + (outer @ inner).view_as(self.base[name])
            for name, (inner, outer) in self.factors.items()
        }

    @torch.no_grad()
    def put(self) -> None:
        """Set the network's matrices to what they are now."""
        for name, weight in self.weights().items():
            self.own[name].copy_(weight)

    def saved(self) -> dict[str, Tensor]:
        """Return the factors as a checkpoint holds them, beside the optimiser's averages."""
        return {
            f"{PREFIX}{name}.{part}": factor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, factors in self.factors.items()
            for part, factor in zip("AB", factors, strict=True)
        }

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `saved` gave."""
        for name, factors in self.factors.items():
            for part, factor in zip("AB", factors, strict=True):
                factor.copy_(saved[f"{PREFIX}{name}.{part}"])
