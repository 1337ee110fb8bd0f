"""ResNet-32, the form for small images. Letters: B batch, C channels, H W pixels, K classes.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from finetune.backbone.classics.network import Classic, initialise_convolutions, linear

NUM_BLOCKS = 5  # of each stage: 6 * 5 + 2 = 32 layers


class Block(nn.Module):
    """Two convolutions of 3x3 beside a shortcut without parameters.

    Where the maps change (`stride` 2), the shortcut takes every second pixel and fills up with empty
    channels: the paper's option A.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride, self.num_new = stride, num_outputs - num_inputs
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps
        if self.stride > 1:
            shortcut = max_pool2d(shortcut, 1, self.stride)
        if self.num_new:
            shortcut = pad(shortcut, (0, 0, 0, 0, self.num_new // 2, self.num_new - self.num_new // 2))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(maps))))) + shortcut)


class CifarResNet(Classic):
    """A convolution and three stages of 16, 32 and 64 maps; with 5 blocks each 464,154 parameters for 10 classes."""

    stem = "conv1|bn1"
    blocks = ("layer1", "layer2", "layer3")
    head = "fc"

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.fc = linear(64, num_classes)
        initialise_convolutions(self)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = relu(self.bn1(self.conv1(images)))  # (B, 16, 32, 32) of 32x32
        features: Tensor = self.layer3(self.layer2(self.layer1(maps)))
        return features  # (B, 64, 8, 8)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 64, 8, 8)
        hidden = self.drop(self.global_pool(features).flatten(1))  # (B, 64)
        logits: Tensor = hidden if pre_logits else self.fc(hidden)
        return logits  # (B, K)


def _stage(num_inputs: int, num_outputs: int, *, stride: int) -> nn.Sequential:
    first = Block(num_inputs, num_outputs, stride=stride)
    return nn.Sequential(first, *(Block(num_outputs, num_outputs, stride=1) for _ in range(NUM_BLOCKS - 1)))


default_cfgs = generate_default_cfgs(
    {
        "resnet32": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


def resnet32(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return the ResNet-32 for small images; there are no pretrained weights."""
    model: nn.Module = build_model_with_cfg(CifarResNet, "resnet32", pretrained, **arguments)
    return model
