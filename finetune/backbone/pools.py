"""How the feature maps of a convolutional network become one row of features: timm's pools by name, and two of ours.

Letters: B batch, C channels, H W positions of the last feature map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn.functional import fractional_max_pool2d

from finetune.backbone.blank import blank_images
from finetune.errors import BackboneError
from finetune.randomness import derive, forked

AUTO = "auto"
LEAST = 1e-6  # what generalised means use in place of values that are not positive
FIRST_POWER = 3.0
REGION = 2  # positions on a side of a region of fractional max pooling
SHRINKAGE = math.sqrt(2)  # by which it makes a map narrower and lower
FEWEST = {"gem": 2, "fractional": 5}  # positions on a side among which there is something to choose


class MapPool(nn.Module):
    """A pool of ours in the place of timm's: a map (B, C, H, W) becomes (B, C), or (B, C, 1, 1) where that is kept.

    Maps and results of a channels-last network (B, H, W, C) stand likewise.
    """

    pool_type: str

    def __init__(self, *, is_channels_last: bool, keeps_dims: bool) -> None:
        super().__init__()
        self.is_channels_last, self.keeps_dims = is_channels_last, keeps_dims

    def forward(self, maps: Tensor) -> Tensor:
        pooled = self.pooled(maps.permute(0, 3, 1, 2) if self.is_channels_last else maps)  # (B, C, 1, 1)
        if not self.keeps_dims:
            return pooled.flatten(1)
        return pooled.permute(0, 2, 3, 1) if self.is_channels_last else pooled

    def pooled(self, maps: Tensor) -> Tensor:
        raise NotImplementedError


class GeneralisedMean(MapPool):
    """The generalised mean (mean of x^p)^(1/p) over positions: p = 1 is the mean, a large p nears the maximum.

    p is trained with the head and begins at 3. Values that are not positive count as nothing.
    Source: Radenovic et al. 2018, arXiv:1711.02512.
    """

    pool_type = "gem"

    def __init__(self, *, is_channels_last: bool, keeps_dims: bool) -> None:
        super().__init__(is_channels_last=is_channels_last, keeps_dims=keeps_dims)
        self.p = nn.Parameter(torch.full((1,), FIRST_POWER))

    def pooled(self, maps: Tensor) -> Tensor:
        powers = maps.float().clamp(min=LEAST).pow(self.p)  # (B, C, H, W)
        return powers.mean(dim=(2, 3), keepdim=True).pow(1 / self.p)


class FractionalMax(MapPool):
    """Fractional max pooling that makes a map narrower and lower by about sqrt(2), then the mean over what is left.

    In training the regions are drawn anew for each image and channel. In eval mode they are those that the buffers
    `rows` and `columns` begin at, drawn once for all images: everyone who computes with the model gets the same, and an
    exported graph is a gather and a maximum.
    Source: Graham 2014, arXiv:1412.6071 (overlapping regions of 2 x 2, pseudorandom).
    """

    pool_type = "fractional"

    def __init__(self, size: tuple[int, int], *, seed: int, is_channels_last: bool, keeps_dims: bool) -> None:
        """Take the size (H, W) of the maps that come."""
        super().__init__(is_channels_last=is_channels_last, keeps_dims=keeps_dims)
        with forked(derive(seed, "pool")):
            across, down = torch.rand(2, device="cpu").tolist()
        self.register_buffer("rows", torch.tensor(starts(size[0], down)))  # (R,)
        self.register_buffer("columns", torch.tensor(starts(size[1], across)))  # (Q,)
        self.size = len(self.rows), len(self.columns)

    rows: Tensor
    columns: Tensor

    def pooled(self, maps: Tensor) -> Tensor:
        if self.training:
            largest = fractional_max_pool2d(maps.float(), REGION, output_size=self.size)  # (B, C, R, Q)
        else:
            tall = torch.maximum(maps.index_select(2, self.rows), maps.index_select(2, self.rows + 1))
            largest = torch.maximum(tall.index_select(3, self.columns), tall.index_select(3, self.columns + 1))
        return largest.mean(dim=(2, 3), keepdim=True)

    def extra_repr(self) -> str:
        return f"rows={self.rows.tolist()}, columns={self.columns.tolist()}" if not self.rows.is_meta else ""


OURS = (GeneralisedMean.pool_type, FractionalMax.pool_type)


def starts(side: int, sample: float) -> list[int]:
    """Return where regions of fractional max pooling begin along a side, as torch draws them from a sample in [0, 1).

    The last region ends at the edge, the others begin at floor(a (i + u)) - floor(a u). There are fewer than places,
    else nothing would be drawn.
    """
    count = min(round(side / SHRINKAGE), side - REGION)
    step = (side - REGION) / (count - 1)
    return [*(int((i + sample) * step) - int(sample * step) for i in range(count - 1)), side - REGION]


def check_pooled(model: nn.Module, pool: str, label: str) -> tuple[str, nn.Module]:
    """Return the name and the module of the only pool of a network's feature maps, its own or one of ours.

    Raises:
        BackboneError: there is no such thing that another could take the place of.
    """
    there = [(name, m) for name, m in model.named_modules() if isinstance(m, (SelectAdaptivePool2d, MapPool))]
    if len(there) == 1 and there[0][1].pool_type:
        return there[0]
    raise BackboneError(
        f"backbone.pool = {pool!r}: {label} does not pool feature maps in a replaceable way",
        hint="Leave it out. For a network of tokens timm has its own argument, such as"
        " --set 'backbone.model_args={global_pool = \"avg\"}'.",
    )


def put_pool(model: nn.Module, pool: str, *, image_size: tuple[int, int], seed: int, label: str) -> None:
    """Put a pool of ours in the place of a network's own.

    Raises:
        BackboneError: the network has none to be exchanged, or its maps are too small to be pooled so.
    """
    name, own = check_pooled(model, pool, label)
    last = dims_of_positions(own) == (1, 2)
    incoming, outgoing = _passed(model, own, image_size)
    fields: dict[str, Any] = {"is_channels_last": last, "keeps_dims": len(outgoing) == 4}
    size = incoming[1:3] if last else incoming[2:4]
    if min(size) < FEWEST[pool]:
        raise BackboneError(
            f"backbone.pool = {pool!r}: the last feature map of {label} has {size[0]} x {size[1]} positions, which"
            " are too few to choose among",
            hint="Take larger images (--image-size), or leave it out.",
        )
    with torch.device(next(model.parameters()).device):
        new = (
            FractionalMax((size[0], size[1]), seed=seed, **fields)
            if pool == FractionalMax.pool_type
            else GeneralisedMean(**fields)
        )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new.train(model.training))


@torch.no_grad()
def restore_pool(model: nn.Module, tensors: Mapping[str, Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Load what `names` of some weights belong to a pool of ours; return the names that do not, or do not fit."""
    there = [f"{name}." for name, module in model.named_modules() if isinstance(module, MapPool)]
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(tuple(there))}
    fitting = [name for name in names if name in own and name in tensors and tensors[name].shape == own[name].shape]
    for name in fitting:
        own[name].copy_(tensors[name])
    return tuple(name for name in names if name not in fitting)


def dims_of_positions(pool: nn.Module) -> tuple[int, ...]:
    """Return the dimensions of a map that one of timm's pools reduces."""
    inner = getattr(pool, "pool", pool)
    return tuple(getattr(inner, "dim", getattr(inner, "dim_reduce", (2, 3))))


def pool_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the trainable parameters of a pool of ours: it is new, and is trained with the head."""
    for module in model.modules():
        if isinstance(module, MapPool):
            yield from module.parameters()


@torch.no_grad()
def _passed(model: nn.Module, pool: nn.Module, image_size: tuple[int, int]) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of a module's input and output, for one image."""
    was_training = model.training
    with _watched(pool) as seen:
        model.eval()(blank_images(model, image_size))
    model.train(was_training)
    return seen[-1]


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[tuple[torch.Size, torch.Size]]]:
    seen: list[tuple[torch.Size, torch.Size]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    try:
        yield seen
    finally:
        handle.remove()
