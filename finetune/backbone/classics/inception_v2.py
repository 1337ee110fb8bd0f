"""BN-Inception (Inception v2). Letters: B batch, C channels, H W pixels, K classes.

Source: Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift", arXiv:1502.03167, figure 5.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ConvNormAct
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from finetune.backbone.classics.network import Classic, initialise_convolutions, linear

# The maps of every block: 1x1; 1x1 and 3x3; 1x1 and twice 3x3; the pool, and the maps of 1x1 behind it.
BLOCKS: dict[str, tuple[int, tuple[int, int], tuple[int, int], str, int]] = {
    "inception3a": (64, (64, 64), (64, 96), "avg", 32),
    "inception3b": (64, (64, 96), (64, 96), "avg", 64),
    "inception3c": (0, (128, 160), (64, 96), "pass", 0),
    "inception4a": (224, (64, 96), (96, 128), "avg", 128),
    "inception4b": (192, (96, 128), (96, 128), "avg", 128),
    "inception4c": (160, (128, 160), (128, 160), "avg", 128),
    "inception4d": (96, (128, 192), (160, 192), "avg", 128),
    "inception4e": (0, (128, 192), (192, 256), "pass", 0),
    "inception5a": (352, (192, 320), (160, 224), "avg", 128),
    "inception5b": (352, (192, 320), (192, 224), "max", 128),
}


class Block(nn.Module):
    """Convolutions of 1x1, 3x3 and twice 3x3 (for 5x5) beside a pool, joined along the channels.

    A block that passes its input on (`pool` is "pass") halves the side with stride 2 instead.
    """

    def __init__(
        self, num_inputs: int, pointwise: int, three: tuple[int, int], double: tuple[int, int], pool: str, behind: int
    ) -> None:
        super().__init__()
        stride = 2 if pool == "pass" else 1
        if pointwise:
            self.branch1 = _conv(num_inputs, pointwise, 1)
        self.branch3 = nn.Sequential(_conv(num_inputs, three[0], 1), _conv(three[0], three[1], 3, stride))
        self.branch33 = nn.Sequential(
            _conv(num_inputs, double[0], 1), _conv(double[0], double[1], 3), _conv(double[1], double[1], 3, stride)
        )
        pooled = nn.AvgPool2d(3, stride, 1) if pool == "avg" else nn.MaxPool2d(3, stride, 1)
        self.branch_pool = nn.Sequential(pooled, _conv(num_inputs, behind, 1)) if behind else pooled
        self.num_outputs = pointwise + three[1] + double[1] + (behind or num_inputs)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.children()], dim=1)


class InceptionV2(Classic):
    """Ten inception blocks with batch normalisation and no auxiliary classifier; 11.3 million parameters.

    The paper's numbers of maps are kept; where they do not add up to the depth it prints (4c and 4d: 576,
    4e: 1024), the depth is what they add up to (608 and 1056). Its first convolution is separable, here
    a plain one.
    """

    stem = "conv1|conv2"
    blocks = tuple(BLOCKS)
    head = "fc"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = _conv(in_chans, 64, 7, 2)
        self.pool1 = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Sequential(_conv(64, 64, 1), _conv(64, 192, 3))
        self.pool2 = nn.MaxPool2d(3, 2, 1)
        depth = 192
        for name, numbers in BLOCKS.items():
            block = Block(depth, *numbers)
            self.add_module(name, block)
            depth = block.num_outputs
        self.num_features = self.head_hidden_size = depth
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.fc = linear(depth, num_classes)
        initialise_convolutions(self)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        maps: Tensor = self.pool2(self.conv2(self.pool1(self.conv1(images))))  # (B, 192, 28, 28) of 224x224
        for name in BLOCKS:
            maps = self.get_submodule(name)(maps)
        return maps  # (B, 1024, 7, 7)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 1024, 7, 7)
        hidden = self.drop(self.global_pool(features).flatten(1))  # (B, 1024)
        logits: Tensor = hidden if pre_logits else self.fc(hidden)
        return logits  # (B, K)


def _conv(num_inputs: int, num_outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    convolution: nn.Module = ConvNormAct(num_inputs, num_outputs, kernel, stride=stride, padding=kernel // 2)
    return convolution


default_cfgs = generate_default_cfgs(
    {
        "inception_v2": {
            "input_size": (3, 224, 224),
            "interpolation": "bilinear",
            "first_conv": "conv1.conv",
            "classifier": "fc",
        }
    }
)


def inception_v2(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return BN-Inception; there are no pretrained weights."""
    model: nn.Module = build_model_with_cfg(InceptionV2, "inception_v2", pretrained, **arguments)
    return model
