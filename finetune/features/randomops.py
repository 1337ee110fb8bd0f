"""Which nodes of a graph are random or update statistics, when a network trains."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

# Functions and methods of torch that draw random numbers.
RANDOM_NAMES = frozenset(
    {
        "alpha_dropout", "bernoulli", "bernoulli_", "dropout", "dropout1d", "dropout2d", "dropout3d", "exponential_",
        "feature_alpha_dropout", "fractional_max_pool2d", "fractional_max_pool2d_with_indices",
        "fractional_max_pool3d", "fractional_max_pool3d_with_indices", "gumbel_softmax", "multinomial", "normal",
        "normal_", "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random_",
        "randperm", "rrelu", "rrelu_", "uniform_",
    }
)  # fmt: skip
ALWAYS_RANDOM = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
RANDOM_IN_TRAINING = (nn.modules.dropout._DropoutNd, nn.RReLU)
# Modules without parameters that compute the same in training mode.
PLAIN = ("torch.nn.modules.activation", "torch.nn.modules.pooling", "torch.nn.modules.flatten",
         "torch.nn.modules.padding", "torch.nn.modules.upsampling", "torch.nn.modules.pixelshuffle",
         "torch.nn.modules.linear")  # fmt: skip


def is_random(node: fx.Node, root: nn.Module) -> bool:
    """Return whether a node, traced in training mode, is random or updates statistics.

    A leaf module in training mode that is not known to be plain counts as random: that costs
    speed, never exactness.
    """
    if node.op == "call_module":
        return _is_random_module(root.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "scaled_dot_product_attention":
        return bool(_argument(node, 4, "dropout_p", 0.0) != 0.0)
    if name not in RANDOM_NAMES:
        return False
    if "dropout" in name:
        return _argument(node, 2, "training", True) is not False and _argument(node, 1, "p", 0.5) != 0.0
    return True


def _is_random_module(module: nn.Module) -> bool:
    if isinstance(module, ALWAYS_RANDOM):
        return True
    if not module.training:
        return False
    if isinstance(module, RANDOM_IN_TRAINING):
        return not (isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0.0)
    if isinstance(module, nn.MultiheadAttention):
        return True
    if any(True for _ in module.parameters()):
        return getattr(module, "running_mean", None) is not None
    return type(module).__module__ not in PLAIN


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if len(node.args) > place else default
