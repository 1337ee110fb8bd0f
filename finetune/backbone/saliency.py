"""What part of an image an answer is based on: Grad-CAM at the deepest feature map that still has places.

Letters: B batch, C channels, H W pixels, K classes, N tokens, h w places of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from finetune.backbone.trace import Traced, trace
from finetune.errors import BackboneError
from finetune.types import LayerGroup


class Saliency:
    """Tells how much each place of a network's images speaks for a class.

    If the answer does not depend on the places of the last feature map (a class token has read them before), the last
    map of the layer group before is taken, and so on. Source: Selvaraju et al. 2017, arXiv:1610.02391.
    """

    def __init__(self, model: nn.Module, groups: Sequence[LayerGroup], *, image_size: tuple[int, int]) -> None:
        """Find the feature maps of a network.

        Raises:
            BackboneError: torch.fx cannot follow it, or it has none.
        """
        self.model, self.image_size = model, image_size
        self.traced = trace(model, groups, image_size=image_size)
        self.nodes = _candidates(self.traced, groups)
        if not self.nodes:
            raise BackboneError("this network has no feature map")

    def __call__(self, image: Tensor, label: int) -> Tensor | None:  # (C, H, W), normalised
        """Return how much each pixel speaks for a class (H, W), 0 to 1; None where nothing does.

        The network, its gradients and its mode stay as they are.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.enable_grad():
                run = _Kept(self.traced.module, self.nodes)
                logits = run.run(image.unsqueeze(0).requires_grad_())
                kept = [run.kept[node] for node in self.nodes]
                gradients = torch.autograd.grad(logits[0, label], kept, allow_unused=True)
        finally:
            self.model.train(was_training)
        for node, values, gradient in zip(self.nodes, kept, gradients, strict=True):
            of_values, of_gradient = self._places(node, values), self._places(node, gradient)
            if of_values is not None and of_gradient is not None and of_gradient.any():
                return self._shown(of_values.detach(), of_gradient)
        return None

    def _places(self, node: str, values: Tensor | None) -> Tensor | None:
        """Return the values of a feature map, or of tokens, as (C, h, w); None if they form no grid."""
        if values is None:
            return None
        _, dims = self.traced.maps[node]
        if values.ndim == 4:
            return values[0].movedim(2, 0) if dims == (1, 2) else values[0]
        grid = _grid(self.model, values.shape[1], self.image_size)
        return None if grid is None else values[0, -prod(grid) :].T.reshape(-1, *grid)

    def _shown(self, values: Tensor, gradients: Tensor) -> Tensor | None:  # (C, h, w) each
        weights = gradients.float().mean(dim=(1, 2), keepdim=True)
        speaks = (weights * values.float()).sum(dim=0).clamp(min=0)
        if not (most := float(speaks.max())) > 0:
            return None
        sized = interpolate(speaks[None, None] / most, self.image_size, mode="bilinear", align_corners=False)
        return sized[0, 0].cpu()


class _Kept(fx.Interpreter):
    """Runs a graph and keeps what some of its nodes yield."""

    def __init__(self, module: fx.GraphModule, nodes: Sequence[str]) -> None:
        super().__init__(module)
        self.wanted, self.kept = set(nodes), dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = result
        return result


def _candidates(traced: Traced, groups: Sequence[LayerGroup]) -> list[str]:
    """Return the last feature map of each layer group that has more than one place, the deepest first."""
    last = {
        traced.ranks[name]: name
        for name, (shape, dims) in traced.maps.items()
        if prod(shape[at] for at in dims) > 1 and 0 <= traced.ranks[name] < len(groups)
    }
    return [last[rank] for rank in sorted(last, reverse=True)]


def _grid(model: nn.Module, num_tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of the tokens that have a place; those without one (a class, registers) come first."""
    own = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if own is not None and prod(own) <= num_tokens:
        return int(own[0]), int(own[1])
    side = isqrt(num_tokens)
    return (side, side) if side > 1 and image_size[0] == image_size[1] else None
