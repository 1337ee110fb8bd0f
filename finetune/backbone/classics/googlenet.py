"""GoogLeNet (Inception v1), from torchvision with its weights and its two auxiliary classifiers.

Letters: B batch, C channels, H W pixels, K classes.

Source: Szegedy et al. 2014, "Going Deeper with Convolutions", arXiv:1409.4842.
"""

from __future__ import annotations

from typing import Any, ClassVar

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torchvision import models
from torchvision.models.googlenet import BasicConv2d

from finetune.backbone.classics.network import Classic, initialise_convolutions, renew_linear


class GoogLeNet(Classic, models.GoogLeNet):  # type: ignore[misc]
    """Nine inception blocks; 6.6 million parameters and as many again in the auxiliary classifiers.

    In eval mode it yields logits. In training mode it yields a tuple: logits, and those of every
    auxiliary classifier that is itself in training mode, whose losses count `aux_weight` each. An
    auxiliary classifier stands in the layer group whose output it judges, 4a or 4d. So it is trained
    with that group; where the group is frozen, and a loss there could teach nothing, it is left out.
    Its last layer is for the data's classes and renewed with the head; the file of torchvision holds
    the others untrained.

    Differs from the paper as torchvision does: batch normalisation in the place of local response
    normalisation, 3x3 where the paper has 5x5, dropout 0.2 where it has 0.4. The input is standardised
    with the weights' own mean and deviation (0.5), in the place of torchvision's `transform_input`.
    """

    stem = "conv1|conv2|conv3"
    blocks = (
        "inception3a", "inception3b", "inception4a|aux1", "inception4b", "inception4c", "inception4d|aux2",
        "inception4e", "inception5a", "inception5b",
    )  # fmt: skip
    head = "fc"
    aux_weight: ClassVar[float] = 0.3

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> None:
        super().__init__(dropout=drop_rate, init_weights=False)
        self.num_classes, self.num_features, self.head_hidden_size = 1000, 1024, 1024
        if in_chans != 3:
            self.conv1 = BasicConv2d(in_chans, 64, kernel_size=7, stride=2, padding=3)
        if num_classes != self.num_classes:
            self.reset_classifier(num_classes)
        initialise_convolutions(self)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        return self._after_4d(self._to_4d(self._to_4a(images)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, 1024, 7, 7)
        hidden = self._through("avgpool", maps=features).flatten(1)  # (B, 1024)
        return self._through(*(("dropout",) if pre_logits else ("dropout", "fc")), maps=hidden)  # (B, K)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:  # (B, 3, H, W)
        at_4a = self._to_4a(images)
        at_4d = self._to_4d(at_4a)
        logits = self.forward_head(self._after_4d(at_4d))  # (B, K)
        if not self.training:
            return logits
        judged = {"aux1": at_4a, "aux2": at_4d}
        auxiliary = [
            self._through(name, maps=maps) for name, maps in judged.items() if self.get_submodule(name).training
        ]
        return (logits, *auxiliary) if auxiliary else logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put fresh classifiers in the place of the old ones, the auxiliary ones too."""
        super().reset_classifier(num_classes, global_pool)
        for path in ("aux1.fc2", "aux2.fc2"):
            renew_linear(self, path, 1024, num_classes)

    def _to_4a(self, images: Tensor) -> Tensor:
        maps = self._through("conv1", "maxpool1", "conv2", "conv3", "maxpool2", maps=images)
        third = ("inception3a", "inception3b", "maxpool3")
        return self._through(*third, "inception4a", maps=maps)  # (B, 512, 14, 14) of 224x224

    def _to_4d(self, maps: Tensor) -> Tensor:
        return self._through("inception4b", "inception4c", "inception4d", maps=maps)  # (B, 528, 14, 14)

    def _after_4d(self, maps: Tensor) -> Tensor:
        return self._through("inception4e", "maxpool4", "inception5a", "inception5b", maps=maps)  # (B, 1024, 7, 7)

    def _through(self, *layers: str, maps: Tensor) -> Tensor:
        for name in layers:
            maps = self.get_submodule(name)(maps)
        return maps


default_cfgs = generate_default_cfgs(
    {
        "googlenet.tv_in1k": {
            "url": models.GoogLeNet_Weights.IMAGENET1K_V1.url,
            "input_size": (3, 224, 224),
            "interpolation": "bilinear",
            "mean": IMAGENET_INCEPTION_MEAN,
            "std": IMAGENET_INCEPTION_STD,
            "first_conv": "conv1.conv",
            "classifier": ("fc", "aux1.fc2", "aux2.fc2"),
        }
    }
)


def googlenet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return GoogLeNet, with torchvision's weights where `pretrained`."""
    model: nn.Module = build_model_with_cfg(GoogLeNet, "googlenet", pretrained, **arguments)
    return model
