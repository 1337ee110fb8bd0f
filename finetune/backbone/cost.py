"""What one forward pass of a network costs. Letters: H W pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.backbone.blank import blank_images


def multiplications(model: nn.Module, *, image_size: tuple[int, int]) -> int:
    """Return the multiply-adds of one image (H, W) in convolutions, matrix products and attention.

    Attention runs as plain matrix products: which fused kernel would run, and whether it is counted,
    differs from processor to processor.
    """
    image = blank_images(model, image_size)
    was_training = model.training
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.eval()(image)
    model.train(was_training)
    return int(counter.get_total_flops() // 2)
