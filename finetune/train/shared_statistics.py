"""Batch norm with the statistics of the whole batch if several processes have a part of it each.

torch's SyncBatchNorm is for GPUs alone and replaces layers; here the function that all kinds of batch norm call is
answered inside a block, so that the model stays as it is. Letters: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from finetune import ranks


def shared_statistics(run: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which batch norms that use batch statistics see the parts of all processes."""
    if ranks.count() == 1 or not any(_follows(module) for module in run.modules()):
        return nullcontext()
    return _Shared()


def _follows(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training


class _Shared(TorchFunctionMode):
    def __torch_function__(self, function: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_normalised if function is batch_norm else function)(*args, **(kwargs or {}))


def _normalised(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `batch_norm` does of values (B, C, ...), with mean and variance over all processes."""
    if not training:
        return batch_norm(values, running_mean, running_var, weight, bias, training, momentum, eps)
    over = [0, *range(2, values.ndim)]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    exact = values.float()
    own = exact.new_tensor([values.numel() / values.shape[1]])
    total = _Sum.apply(torch.cat([exact.sum(over), own]))
    count, mean = total[-1], total[:-1] / total[-1]  # (), (C,)
    centred = exact - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(over)) / count
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
    out: Tensor = centred * (variance + eps).rsqrt().view(shape)
    out = out if weight is None else out * weight.view(shape)
    return (out if bias is None else out + bias.view(shape)).to(values)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        total = own.clone()
        ranks.sum_up([total])
        return total

    @staticmethod
    def backward(_: Any, slope: Tensor) -> Tensor:
        total = slope.clone()
        ranks.sum_up([total])
        return total
