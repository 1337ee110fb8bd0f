"""A network in the form of an export: what it takes of images, and what it puts out beside logits.

Letters: B batch, C channels, H W pixels, D features, K classes, h w places of a feature map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn

from finetune.backbone.groups import head_modules
from finetune.backbone.heads import linear_classifier
from finetune.errors import ExportError
from finetune.exports.form import FEATURES, OUTPUT, PROBABILITIES, SALIENCY, OnnxForm
from finetune.features.extract import with_output
from finetune.tasks import TASKS, Task
from finetune.types import BRIGHTNESS, Preprocessing

CLOSE = 1e-4  # of the largest logit: how far the mean of a class's map plus its bias may lie from its logit


class ExportedNetwork(nn.Module):
    """A network that takes images (B, C, H, W), or 8 bits (B, H, W, C) that it standardises, and gives several outputs.

    `features` (B, D) are what reaches the head. `saliency` (B, K, h, w) is how much each place speaks for each class: a
    logit is the mean of its map, plus its bias. Source: Zhou et al. 2016, arXiv:1512.04150.
    """

    def __init__(self, model: nn.Module, form: OnnxForm, *, preprocessing: Preprocessing, task: Task) -> None:
        """Put a network into a form.

        Raises:
            ExportError: it has no maps of classes, and saliency is asked for.
        """
        super().__init__()
        self.model, self.form, self.activation = model, form, TASKS[task].activation
        self.takes_bytes = form.preprocessing != "none"
        self.is_grey = preprocessing.bands.count > preprocessing.channels
        for name, values in (("brightness", BRIGHTNESS), ("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.pool = _last_pool(model, preprocessing) if form.saliency else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.takes_bytes:
            images = self._standardised(images)
        outputs: dict[str, Tensor] = {}
        with _inputs_of(self.pool) as maps:
            if self.form.features:
                outputs[FEATURES], outputs[OUTPUT] = with_output(self.model, head_modules(self.model)[0])(images)
            else:
                outputs[OUTPUT] = self.model(images)
        if self.form.softmax:
            logits = outputs[OUTPUT]
            outputs[PROBABILITIES] = logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()
        if self.pool is not None and (head := linear_classifier(self.model)) is not None:
            outputs[SALIENCY] = _class_maps(head, self.pool, maps[-1])
        return tuple(outputs[name] for name in self.form.outputs)

    def _standardised(self, images: Tensor) -> Tensor:  # (B, H, W, C)
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if self.is_grey:
            pixels = (pixels * self.get_buffer("brightness")).sum(dim=1, keepdim=True)
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")


@contextlib.contextmanager
def _inputs_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Yield a list that gains what a module is given inside the block."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _last_pool(model: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """Return the layer that averages the places of the last feature map, for the linear head alone.

    Raises:
        ExportError: there is none.
    """
    images = torch.linspace(-1, 1, 2 * preprocessing.channels * prod(preprocessing.image_size))
    images = images.sin().view(2, preprocessing.channels, *preprocessing.image_size)
    head = linear_classifier(model)
    pools: list[nn.Module] = [module for name, module in model.named_modules() if name.endswith("global_pool")]
    for pool in reversed(pools):
        if head is None:
            break
        with torch.no_grad(), _inputs_of(pool) as seen:
            logits = model(images)
            if not seen or seen[-1].dim() != 4 or seen[-1].shape[3 if _is_last(pool) else 1] != head.in_features:
                continue
            means = _class_maps(head, pool, seen[-1]).mean(dim=(2, 3)) + (0 if head.bias is None else head.bias)
            if float((means - logits).abs().max()) <= CLOSE * float(logits.abs().max()):
                return pool
    raise ExportError(
        "this network does not end in an average over places and a linear classifier: a class has no map",
        hint="Leave out --saliency. The report of a run shows Grad-CAM, which needs gradients.",
    )


def _class_maps(head: nn.Linear, pool: nn.Module, features: Tensor) -> Tensor:
    """Return the maps (B, K, h, w) of a feature map (B, C, h, w), or (B, h, w, C) where the pool takes it so."""
    features = features.movedim(3, 1) if _is_last(pool) else features
    return nn.functional.conv2d(features, head.weight[:, :, None, None])


def _is_last(pool: nn.Module) -> bool:
    return str(getattr(pool, "input_fmt", "NCHW")) == "NHWC"
