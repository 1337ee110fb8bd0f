"""LeNet-5 in the form of the notes. Letters: B batch, C channels, H W pixels, K classes.

Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn.functional import relu

from finetune.backbone.classics.network import Classic, linear, sides, slid

SMALLEST = 16


class LeNet5(Classic):
    """Two convolutions with pools, two fully connected layers and the classifier; 62,958 parameters for 10 classes.

    As in the notes: colour images, 8 and 16 feature maps, one bias per unit, and the layers' names
    (`softmax` is the linear layer below it; the softmax itself is part of the loss). The paper has one
    grey channel, 6 and 16 maps of which the latter see chosen ones of the former, pools with a trained
    scale, scaled tanh where relu stands here, and radial basis functions at the end.
    """

    stem = "conv1"
    blocks = ("conv2", "fc3", "fc4")
    head = "softmax"

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, img_size: int | tuple[int, int] = 32, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        height, width = sides(img_size, smallest=SMALLEST)
        self.num_classes = num_classes
        self.num_features, self.head_hidden_size = 16, 84
        self.conv1 = nn.Conv2d(in_chans, 8, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 16, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc3 = nn.Linear(16 * _side(height) * _side(width), 120)
        self.fc4 = nn.Linear(120, 84)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.softmax = linear(84, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = self.pool1(relu(self.conv1(images)))  # (B, 8, 14, 14) of 32x32
        features: Tensor = self.pool2(relu(self.conv2(maps)))
        return features  # (B, 16, 5, 5)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 16, 5, 5)
        hidden = relu(self.fc4(relu(self.fc3(features.flatten(1)))))  # (B, 84)
        hidden = self.drop(hidden)
        logits: Tensor = hidden if pre_logits else self.softmax(hidden)
        return logits  # (B, K)


def _side(side: int) -> int:
    return slid(slid(side, 5) // 2, 5) // 2


default_cfgs = generate_default_cfgs(
    {
        "lenet5": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "softmax",
        }
    }
)


def lenet5(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return LeNet-5; there are no pretrained weights."""
    model: nn.Module = build_model_with_cfg(LeNet5, "lenet5", pretrained, **arguments)
    return model
