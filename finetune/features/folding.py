"""Batch norms of a graph folded into the convolutions before them: for passes without gradients, and for training.

Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2. Letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finetune.backbone.freeze import moved_parameters, still_modules
from finetune.features.divide import Tail, output_of, whole_tail
from finetune.features.graphs import IndivisibleError
from finetune.types import FreezePlan, LayerGroup

TOLERANCE = 1e-4  # of the largest value of the output
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # of which it is known that they do nothing else, as it is of these norms
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def folded_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph in eval mode with batch norms folded into the convolutions before them."""
    folded = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for convolution, norm in _pairs(folded):
        _join(folded, convolution, norm, fuse_conv_bn_eval)
    return folded.eval()


def folded_run(run: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup]) -> Tail | None:
    """Return what trains as a model or its tail does, with still norms in the convolutions before them.

    Norms that follow batches stay as they are, and those that are trained behind a frozen convolution: they would need
    the gradient of its weights. None if no norm can be folded, if torch.fx cannot follow the model, or if matrices are
    adapted: these are replaced by name.
    """
    if any(item.trains == "lora" for item in plan.groups):
        return None
    try:
        tail = run if isinstance(run, Tail) else whole_tail(run, still_modules(run, plan, groups))
    except IndivisibleError:
        return None
    assert isinstance(tail.in_training, fx.GraphModule)
    moved = moved_parameters(plan, groups)
    folded = fx.GraphModule(tail.in_training, copy.deepcopy(tail.in_training.graph))
    for convolution, norm in _pairs(folded):
        is_still = folded.get_submodule(norm) in tail.still
        trains = [any(f"{name}.{part}" in moved for part in ("weight", "bias")) for name in (convolution, norm)]
        if is_still and (trains[0] or not trains[1]):
            _join(folded, convolution, norm, FoldedConvolution)
    found = Tail(folded, tail.in_eval, tail.still)
    return found if num_folded(found) else None


def num_folded(tail: Tail) -> int:
    """Return how many norms a tail computes with the convolutions before them in training."""
    return sum(isinstance(module, FoldedConvolution) for module in tail.in_training.modules())


def trains_alike(run: nn.Module, folded: Tail, inputs: Any, *, fork: Callable[[], Any]) -> bool:
    """Return whether the two yield the same in training mode, within `TOLERANCE`; both are left in eval mode.

    `fork` is a context that seeds the random generators alike each time.
    """
    buffers = {name: buffer.clone() for name, buffer in run.named_buffers()}
    one, other = (output_of(part, True, fork, inputs, buffers, owner=run) for part in (run, folded))
    for part in (run, folded):
        part.eval()
    most = TOLERANCE * max(float(tensor.abs().max()) for tensor in one)
    return len(one) == len(other) and all(float((a - b).abs().max()) <= most for a, b in zip(one, other, strict=True))


class FoldedConvolution(nn.Module):
    """A convolution and the batch norm behind it, whose statistics stand still, computed as one convolution.

    Both keep their parameters, which get the gradients that they would get apart, but for the order of rounding. What
    lies between the two is neither computed nor kept for the backward pass.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        layer, norm = self.convolution, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)  # (C,) of the output
        if norm.weight is not None:
            scale = scale * norm.weight
        offset = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
        bias = offset * scale if norm.bias is None else torch.addcmul(norm.bias, offset, scale)
        weight = layer.weight * scale.view(-1, 1, 1, 1)
        if isinstance(layer, Conv2dSame):
            images = pad_same(images, layer.kernel_size, layer.stride, layer.dilation)
        maps: Tensor = layer._conv_forward(images, weight, bias)
        return maps


def _pairs(graph: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution and the batch norm behind it, neither of which is used elsewhere."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if type(norm) in NORMS and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        if norm is None or norm.running_mean is None or type(modules[str(before.target)]) not in CONVOLUTIONS:
            continue
        if sum(other.target in (before.target, node.target) for other in graph.graph.nodes) == 2:
            yield str(before.target), str(node.target)


def _join(graph: fx.GraphModule, convolution: str, norm: str, join: Callable[[Any, Any], nn.Module]) -> None:
    """Put one layer in the place of a convolution, and in that of its norm what a norm of timm does besides."""
    layers = graph.get_submodule(convolution), graph.get_submodule(norm)
    rest = [getattr(layers[1], part) for part in ("drop", "act") if hasattr(layers[1], part)]
    _put(graph, convolution, join(*layers))
    _put(graph, norm, nn.Sequential(*rest))


def _put(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(graph.get_submodule(parent), last, module)
