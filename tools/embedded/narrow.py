"""Begin a student with what its wider teacher knows: both MobileNetV2, block by block, in closed form.

A stream (what the blocks of a stage add to) is linear: the student's is the teacher's, projected on its
first principal directions. Inside a block the student keeps the channels that explain most of what the
block adds, chosen greedily; the 1x1 convolutions around them are fitted by least squares to what the
teacher makes, from the student's own inputs, so that errors do not add up.

N images, C channels, H W places, R rows (some places of every image).

Source: He et al. 2017, Channel pruning for accelerating very deep neural networks, arXiv:1707.06168
(selection, then least squares); Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024 (projected streams).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

PLACES = 48  # of an image, at most
CHUNK = 64
RIDGE = 1e-4  # of the mean variance of the inputs


@torch.no_grad()
def narrow(student: nn.Module, teacher: nn.Module, pictures: Tensor) -> None:
    """Set the student's weights and statistics from its teacher's, by what both make of images [N, 3, H, W]."""
    was_training = student.training
    student.eval()
    ours = theirs = pictures
    for at, (narrow_stage, wide_stage) in enumerate(zip(student.blocks, teacher.blocks, strict=True)):
        before = [theirs]  # of every block of the teacher's stage
        for wide in wide_stage:
            previous = before[-1] if at or len(before) > 1 else _mapped(_stem(teacher), theirs)
            before.append(_mapped(wide, previous))
        basis = _directions(torch.cat([rows(m)[::2] for m in before[1:]]), _width(narrow_stage[0]))
        for number, (block, wide) in enumerate(zip(narrow_stage, wide_stage, strict=True)):
            target = _mapped(basis, before[number + 1])
            if at == 0:
                ours = _first(student, teacher, ours, target)
            else:
                ours = _block(block, wide, ours, before[number], target)
        theirs = before[-1]
    wanted = rows(theirs, lambda x: _affine(teacher.bn2, teacher.conv_head(x)))
    _fit(student.conv_head, student.bn2, rows(ours), wanted)
    student.train(was_training)


def rows(maps: Tensor, make: Callable[[Tensor], Tensor] = lambda chunk: chunk) -> Tensor:
    """Return the channels at some places of what is made of each image: [R, C]."""
    found = []
    for chunk in maps.split(CHUNK):
        made = make(chunk).flatten(2)
        step = -(-made.shape[2] // PLACES) | 1  # odd: not the same columns of every row
        found.append(made[:, :, ::step].transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


def least_squares(inputs: Tensor, target: Tensor) -> Tensor:
    """Return the weight [T, C] of the affine map from inputs [R, C] that comes nearest to target [R, T]."""
    centred, wanted = (inputs - inputs.mean(0)).double(), (target - target.mean(0)).double()
    among = centred.T @ centred
    among.diagonal().add_(RIDGE * among.diagonal().mean())
    return torch.linalg.solve(among, centred.T @ wanted).T.float()


def _first(student: nn.Module, teacher: nn.Module, pictures: Tensor, target: Tensor) -> Tensor:
    """Set the stem and the first block (a depthwise and a 1x1 convolution): some of the stem's channels stay."""
    block, wide = student.blocks[0][0], teacher.blocks[0][0]
    hidden = rows(pictures, lambda x: wide.bn1(wide.conv_dw(_stem(teacher)(x))))
    kept = _chosen(hidden, rows(target), block.conv_dw.out_channels)
    _copy(student.conv_stem, student.bn1, teacher.conv_stem, teacher.bn1, kept)
    _copy(block.conv_dw, block.bn1, wide.conv_dw, wide.bn1, kept)
    _fit(block.conv_pw, block.bn2, hidden[:, kept], rows(target))
    return _mapped(lambda x: block(_stem(student)(x)), pictures)


def _block(block: nn.Module, wide: nn.Module, ours: Tensor, theirs: Tensor, target: Tensor) -> Tensor:
    """Set one inverted residual, whose output is to be `target`; yield what it makes of `ours`."""
    kept = _chosen(
        rows(theirs, lambda x: wide.bn2(wide.conv_dw(wide.bn1(wide.conv_pw(x))))),
        rows(target),
        block.conv_dw.out_channels,
    )
    _fit(block.conv_pw, block.bn1, rows(ours), rows(theirs, lambda x: _affine(wide.bn1, wide.conv_pw(x)))[:, kept])
    _copy(block.conv_dw, block.bn2, wide.conv_dw, wide.bn2, kept)
    hidden = rows(ours, lambda x: block.bn2(block.conv_dw(block.bn1(block.conv_pw(x)))))
    _fit(block.conv_pwl, block.bn3, hidden, rows(target - ours if block.has_skip else target))
    return _mapped(block, ours)


def _chosen(hidden: Tensor, target: Tensor, count: int) -> Tensor:
    """Choose the columns of hidden [R, C] that explain most of target [R, T], one after the other."""
    hidden, target = hidden - hidden.mean(0), target - target.mean(0)
    among = (hidden.T @ hidden).double()
    with_target = (hidden.T @ target).double()
    floor = RIDGE * among.diagonal().mean()
    chosen: list[int] = []
    for _ in range(count):
        gain = with_target.square().sum(1) / (among.diagonal() + floor)
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        share = among[:, best] / (among[best, best] + floor)
        with_target = with_target - share[:, None] * with_target[best]
        among = among - share[:, None] * among[best]
    return torch.tensor(sorted(chosen))


def _fit(conv: nn.Conv2d, norm: nn.BatchNorm2d, inputs: Tensor, target: Tensor) -> None:
    """Set a 1x1 convolution and its norm to the least-squares map from inputs [R, C] to target [R, T]."""
    weight = least_squares(inputs, target)
    made = inputs @ weight.T
    conv.weight.copy_(weight[:, :, None, None])
    norm.running_mean.copy_(made.mean(0))
    norm.running_var.copy_(made.var(0))
    norm.weight.copy_((made.var(0) + norm.eps).sqrt())
    norm.bias.copy_(target.mean(0))


def _copy(conv: nn.Conv2d, norm: nn.BatchNorm2d, of: nn.Conv2d, norm_of: nn.BatchNorm2d, kept: Tensor) -> None:
    conv.weight.copy_(of.weight[kept])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).copy_(getattr(norm_of, name)[kept])


def _directions(rows: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Return the projection of maps [N, C, H, W] on the first principal directions of rows [R, C]."""
    basis = torch.linalg.eigh(torch.cov(rows.T.double()))[1][:, -count:].float()
    return lambda maps: torch.einsum("nchw,ck->nkhw", maps, basis)


def _affine(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Apply a norm without the activation behind it."""
    return functional.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _stem(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pictures: net.bn1(net.conv_stem(pictures))


def _width(block: nn.Module) -> int:
    return (block.conv_pwl if hasattr(block, "conv_pwl") else block.conv_pw).out_channels


def _mapped(make: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    return torch.cat([make(chunk) for chunk in maps.split(CHUNK)])
