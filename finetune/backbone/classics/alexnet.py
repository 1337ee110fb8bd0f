"""AlexNet, from torchvision with its weights. Letters: B batch, C channels, H W pixels, K classes.

Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks";
torchvision has the form of Krizhevsky 2014, arXiv:1404.5997: one tower, 64 to 384 maps, no normalisation.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torchvision import models

from finetune.backbone.classics.network import Classic


class AlexNet(Classic, models.AlexNet):  # type: ignore[misc]
    """Five convolutions and three fully connected layers; 61.1 million parameters, under torchvision's names."""

    stem = r"features\.0"
    blocks = (
        r"features\.3", r"features\.6", r"features\.8", r"features\.10", r"classifier\.1", r"classifier\.4"
    )  # fmt: skip
    head = "classifier.6"
    features: nn.Sequential
    avgpool: nn.Module
    classifier: nn.Sequential

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__(dropout=drop_rate)
        self.num_classes, self.num_features, self.head_hidden_size = 1000, 256, 4096
        if in_chans != 3:
            self.features[0] = nn.Conv2d(in_chans, 64, 11, stride=4, padding=2)
        if num_classes != self.num_classes:
            self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        features: Tensor = self.features(images)
        return features  # (B, 256, 6, 6) of 224x224

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 256, 6, 6)
        flat = self.avgpool(features).flatten(1)  # (B, 9216)
        logits: Tensor = self.classifier[:-1](flat) if pre_logits else self.classifier(flat)
        return logits  # (B, K)


default_cfgs = generate_default_cfgs(
    {
        "alexnet.tv_in1k": {
            "url": models.AlexNet_Weights.IMAGENET1K_V1.url,
            "input_size": (3, 224, 224),
            "interpolation": "bilinear",
            "first_conv": "features.0",
            "classifier": "classifier.6",
        }
    }
)


def alexnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return AlexNet, with torchvision's weights where `pretrained`."""
    model: nn.Module = build_model_with_cfg(AlexNet, "alexnet", pretrained, **arguments)
    return model
