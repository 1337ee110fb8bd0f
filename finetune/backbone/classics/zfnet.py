"""ZFNet: AlexNet with a first layer that looks closer. Letters: B batch, C channels, H W pixels, K classes.

Source: Zeiler and Fergus 2013, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn.functional import relu

from finetune.backbone.classics.network import Classic, linear, sides, slid

SMALLEST = 64


class ZFNet(Classic):
    """Five convolutions, the first 7x7 with stride 2, and three fully connected layers; 62.4 million parameters.

    The paper normalises contrast across feature maps after the first two pools; here that is AlexNet's
    local response normalisation. Borders are padded so that the maps have the paper's sizes: 110, 55,
    26, 13, 6.
    """

    stem = "conv1"
    blocks = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    head = "fc8"

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, img_size: int | tuple[int, int] = 224, drop_rate: float = 0.5
    ) -> None:
        super().__init__()
        height, width = sides(img_size, smallest=SMALLEST)
        self.num_classes = num_classes
        self.num_features, self.head_hidden_size = 256, 4096
        self.conv1 = nn.Conv2d(in_chans, 96, 7, stride=2, padding=1)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.pool5 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fc6 = nn.Linear(256 * _side(height) * _side(width), 4096)
        self.drop6 = nn.Dropout(drop_rate)
        self.fc7 = nn.Linear(4096, 4096)
        self.drop7 = nn.Dropout(drop_rate)
        self.fc8 = linear(4096, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = self.norm1(self.pool1(relu(self.conv1(images))))  # (B, 96, 55, 55) of 224x224
        maps = self.norm2(self.pool2(relu(self.conv2(maps))))  # (B, 256, 13, 13)
        maps = relu(self.conv4(relu(self.conv3(maps))))  # (B, 384, 13, 13)
        features: Tensor = self.pool5(relu(self.conv5(maps)))
        return features  # (B, 256, 6, 6)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 256, 6, 6)
        hidden = self.drop6(relu(self.fc6(features.flatten(1))))
        hidden = self.drop7(relu(self.fc7(hidden)))  # (B, 4096)
        logits: Tensor = hidden if pre_logits else self.fc8(hidden)
        return logits  # (B, K)


def _side(side: int) -> int:
    first = slid(slid(side, 7, stride=2, padding=1), 3, stride=2, ceil=True)
    second = slid(slid(first, 5, stride=2), 3, stride=2, ceil=True)
    return slid(second, 3, stride=2, ceil=True)


default_cfgs = generate_default_cfgs(
    {
        "zfnet": {
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc8",
        }
    }
)


def zfnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return ZFNet; there are no pretrained weights."""
    model: nn.Module = build_model_with_cfg(ZFNet, "zfnet", pretrained, **arguments)
    return model
