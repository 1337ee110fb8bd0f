"""Batch norms of a graph folded into the convolutions before them."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph in eval mode with batch norms folded into the convolutions before them.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2, by torch's `fuse_conv_bn_eval`.
    """
    folded = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    modules = dict(graph.named_modules())
    for node in list(folded.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if isinstance(norm, nn.BatchNorm2d) and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = modules[str(before.target)]
        if not isinstance(convolution, nn.Conv2d) or norm is None or norm.running_mean is None:
            continue
        if sum(other.target in (before.target, node.target) for other in folded.graph.nodes) > 2:
            continue  # layers that are used twice
        _put(folded, str(before.target), fuse_conv_bn_eval(convolution, norm))
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # of timm's BatchNormAct2d
        _put(folded, str(node.target), nn.Sequential(*rest))
    folded.recompile()
    return folded.eval()


def _put(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(graph.get_submodule(parent), last, module)
