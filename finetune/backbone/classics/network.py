"""What timm requires of a network, written once for the networks of the notes.

Letters: B batch, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn


class Classic(nn.Module):
    """A network with the methods of a timm model; its parts are named by path.

    `stem` and then each of `blocks` is a layer group, from input to output (a regular expression on
    the names of its modules); `head` is the classifier. A subclass sets `num_classes`,
    `num_features` (C of what `forward_features` yields) and `head_hidden_size` (D that the
    classifier takes), and writes `forward_features` and `forward_head`.
    """

    stem: ClassVar[str]
    blocks: ClassVar[tuple[str, ...]]
    head: ClassVar[str]
    num_classes: int
    num_features: int
    head_hidden_size: int

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        """Return the last feature maps, (B, C, H, W)."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:  # (B, C, H, W)
        """Return the logits (B, K), or with `pre_logits` what the classifier takes (B, D)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Any:  # (B, 3, H, W)
        return self.forward_head(self.forward_features(images))  # (B, K)

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one; with 0 classes none. `global_pool` is ignored."""
        renew_linear(self, self.head, self.head_hidden_size, num_classes)
        self.num_classes = num_classes

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layer groups; fine and coarse are the same."""
        blocks = [(rf"^(?:{pattern})\.", (index,)) for index, pattern in enumerate(self.blocks)]
        return {"stem": rf"^(?:{self.stem})\.", "blocks": blocks}


def renew_linear(model: nn.Module, path: str, num_features: int, num_classes: int) -> None:
    """Put a fresh linear layer at a path of a model, or the identity for 0 classes."""
    like = next(model.parameters())
    parent, _, name = path.rpartition(".")
    fresh = linear(num_features, num_classes).to(like.device, like.dtype).train(model.training)
    setattr(model.get_submodule(parent), name, fresh)


def linear(num_features: int, num_classes: int) -> nn.Module:
    """Return a classifier: a linear layer, or for 0 classes the identity."""
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


def initialise_convolutions(model: nn.Module) -> None:
    """Draw the weights of every convolution so that relu preserves the scale of gradients. Source: He et al. 2015."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def sides(img_size: int | tuple[int, int], *, smallest: int) -> tuple[int, int]:
    """Return height and width in pixels.

    Raises:
        ValueError: one is too small for the network.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < smallest:
        raise ValueError(f"images of {smallest} pixels or more are needed, not {height}x{width}")
    return height, width


def slid(side: int, kernel: int, *, stride: int = 1, padding: int = 0, ceil: bool = False) -> int:
    """Return the side of the output of a convolution or pool: (side + 2 padding - kernel) / stride + 1."""
    return (side + 2 * padding - kernel + (stride - 1 if ceil else 0)) // stride + 1
