"""What re-initialised layers begin with: weights of linear and convolution layers; their biases are zero.

To add one: a row in `INITIALISERS`, its name in `values.Initialiser`, a line in docs/training.md. Norms, tokens and
positions begin as the network has them. Letters: n inputs of a unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

TOLERANCE, MOST_ROUNDS = 0.01, 10  # of LSUV: how far a variance may be from 1, and how often a layer is scaled


def initialise(model: nn.Module, names: Collection[str], name: str) -> None:
    """Give the layers of some parameters new weights, by torch's global generator; "auto" leaves them as they are."""
    if name == "auto":
        return
    for layer in layers_of(model, names):
        with torch.no_grad():
            INITIALISERS[name](layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()


def layers_of(model: nn.Module, names: Collection[str]) -> list[nn.Linear | _ConvNd]:
    """Return the linear and convolution layers whose weights are among some parameters."""
    wanted = set(names)
    layers = model.named_modules()
    return [m for path, m in layers if isinstance(m, (nn.Linear, _ConvNd)) and f"{path}.weight".lstrip(".") in wanted]


@torch.no_grad()
def scale_to_unit_variance(layers: Collection[nn.Module], forward: Callable[[], object]) -> list[nn.Module]:
    """Scale each layer, in the order in which a batch passes them, until its output has variance 1.

    `forward` runs the batch. Returns the layers that it does not pass, which stay as they are.
    Source: Mishkin & Matas 2016, All you need is a good init, arXiv:1511.06422.
    """
    order: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, _: object, output: Tensor) -> None:
        order[layer] = output.float().var()

    handles = [layer.register_forward_hook(look) for layer in layers]
    try:
        forward()
        for layer in list(order):
            for _ in range(MOST_ROUNDS):
                variance = float(order[layer])
                if abs(variance - 1) < TOLERANCE or variance < torch.finfo(torch.float32).tiny:
                    break
                layer.weight.div_(math.sqrt(variance))  # type: ignore[operator]
                forward()
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in layers if layer not in order]


def _inputs(weight: Tensor) -> int:
    return weight[0].numel()


def _random_walk(weight: Tensor) -> None:
    """Draw from N(0, g^2 / n) with the g by which the log of a ReLU network's gradient walks without a drift.

    Source: Sussillo & Abbott 2014, arXiv:1412.6558: g = sqrt(2) exp(1.2 / (max(n, 6) - 2.4)).
    """
    count = _inputs(weight)
    gain = math.sqrt(2) * math.exp(1.2 / (max(count, 6) - 2.4))
    nn.init.normal_(weight, std=gain / math.sqrt(count))


INITIALISERS: dict[str, Callable[[Tensor], object]] = {
    # Krizhevsky et al. 2012
    "gaussian": lambda weight: nn.init.normal_(weight, std=0.01),
    # Glorot & Bengio 2010
    "xavier": nn.init.xavier_uniform_,
    # He et al. 2015, arXiv:1502.01852: deviation sqrt(2 / n)
    "kaiming": lambda weight: nn.init.normal_(weight, std=math.sqrt(2 / _inputs(weight))),
    # Saxe et al. 2014, arXiv:1312.6120
    "orthogonal": nn.init.orthogonal_,
    "random-walk": _random_walk,
    "lsuv": nn.init.orthogonal_,  # and then `scale_to_unit_variance`
    "zero": nn.init.zeros_,
}
