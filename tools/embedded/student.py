"""What both pretrainings of the embedded backbone share: the network, its views of images, its steps.

B batch, C channels, H W pixels; S the side of a view.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels

ARCHITECTURE = "mobilenetv2_075"
ARGUMENTS = {"pad_type": "same"}  # as its teacher: their feature maps lie on each other
SIDE = 128
TESTED_SIDE = 160  # random crops show things larger than they are in a whole image (Touvron et al. 2019)
MEAN = STD = 0.5


def student(*, num_classes: int, seed: int, device: str) -> nn.Module:
    """Return the network with random weights, in training mode."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(ARCHITECTURE, num_classes=num_classes, **ARGUMENTS)
    return model.to(device=device, memory_format=torch.channels_last).train()


def views(pictures: Sequence[Tensor], *, smallest: float) -> Tensor:
    """Cut one random view from each image [C, H, W] uint8 and change its colours: [B, 3, S, S], normalised."""
    cut = torch.stack([_cut(picture, smallest) for picture in pictures]).float().div_(255)
    return _recoloured(cut).sub_(MEAN).div_(STD).contiguous(memory_format=torch.channels_last)


def mixed(batch: Tensor) -> Tensor:
    """Paste a box of another image into each, in half of the batches (CutMix without labels)."""
    if torch.rand(()) < 0.5:
        return batch
    area = float(torch.empty(()).uniform_(0.1, 0.6))
    side = int(SIDE * math.sqrt(area))
    top, left = (int(torch.randint(0, SIDE - side + 1, ())) for _ in range(2))
    batch[:, :, top : top + side, left : left + side] = batch.roll(1, 0)[:, :, top : top + side, left : left + side]
    return batch


def train(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    at_step: Callable[[int], None],
) -> None:
    """Take AdamW steps with a warm-up and a cosine; `at_step` is called after each."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.03, betas=(0.9, 0.98))
    recent, begin = [], time.perf_counter()
    for step in range(steps):
        share = min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        recent.append(loss.item())
        at_step(step + 1)
        if (step + 1) % 50 == 0:
            rate = (step + 1) / (time.perf_counter() - begin)
            print(f"step {step + 1}/{steps} loss {sum(recent[-50:]) / 50:.4f} {rate:.2f} steps/s", flush=True)


class Average:
    """An exponential moving average of a model's weights and statistics."""

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.model, self.decay = model, decay
        self.state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.state[key].lerp_(tensor, 1 - decay)


def write(state: dict[str, Tensor], folder: Path) -> None:
    """Write the backbone (no classifier, float16) as a folder that timm loads."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for key, tensor in state.items()
        if not key.startswith("classifier.") and not key.endswith("num_batches_tracked")
    }
    save_file(kept, folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "model_args": ARGUMENTS,
        "pretrained_cfg": {
            "tag": "embedded",
            "license": "apache-2.0",
            "num_classes": 0,
            "input_size": [3, TESTED_SIDE, TESTED_SIDE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _cut(picture: Tensor, smallest: float) -> Tensor:
    height, width = picture.shape[-2:]
    area = height * width * float(torch.empty(()).uniform_(smallest, 1.0))
    ratio = math.exp(float(torch.empty(()).uniform_(math.log(0.75), math.log(4 / 3))))
    tall = min(height, max(8, round(math.sqrt(area / ratio))))
    wide = min(width, max(8, round(math.sqrt(area * ratio))))
    top, left = int(torch.randint(0, height - tall + 1, ())), int(torch.randint(0, width - wide + 1, ()))
    view = pixels.resized_crop(picture, top, left, tall, wide, [SIDE, SIDE], antialias=True)
    return view.flip(-1) if torch.rand(()) < 0.5 else view


def _recoloured(batch: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and (sometimes) take the colours away, each image its own."""
    size = (len(batch), 1, 1, 1)
    grey = batch.mean(1, keepdim=True)

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(size).uniform_(low, high).to(batch.device)

    saturation = drawn(0.5, 1.5) * (drawn(0, 1) > 0.15)
    batch = torch.lerp(grey.expand_as(batch), batch, saturation)
    middle = batch.mean((1, 2, 3), keepdim=True)
    batch = torch.lerp(middle.expand_as(batch), batch, drawn(0.6, 1.4))
    return batch.mul_(drawn(0.6, 1.4)).clamp_(0, 1)
