"""What a report shows of how a network sees: its inputs, what its answers are based on, its first layer's filters.

Letters: C channels, H W pixels, F filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from finetune.backbone.load import Backbone
from finetune.backbone.saliency import Saliency
from finetune.errors import BackboneError
from finetune.images.decode import UndecodableError, read
from finetune.images.stacks import picture_of
from finetune.images.transforms import augmented_view, normalise, plain_view
from finetune.randomness import derive, forked
from finetune.report.answered import SIDE, Answered, AnsweredImage, data_uri
from finetune.sections import AugmentSection
from finetune.types import Preprocessing, Sample

MOST_LOOKED, MOST_FED = 4, 12  # pictures
DIMMED = 0.35  # share of its brightness left to places that do not speak for the class
MOST_FILTERS, COLUMNS, FILTER_SIDE = 64, 16, 32


@dataclass(frozen=True, slots=True)
class LitImage:
    """An image as the network sees it, lit where it speaks for the guessed class, and for its own; data URIs."""

    case: AnsweredImage
    for_guess: str
    for_truth: str  # empty if both are the same, or nothing speaks for it


@dataclass(frozen=True, slots=True)
class Eyes:
    """Where a network looked, the filters of its first layer, what training showed it: data URIs, or nothing."""

    looked: tuple[LitImage, ...] = ()
    filters: str = ""
    fed: tuple[str, ...] = ()


def fed_with(
    samples: Sequence[Sample], *, root: Path, preprocessing: Preprocessing, augment: AugmentSection, seed: int
) -> tuple[str, ...]:
    """Return some images of train as training sees them, each freshly cropped and varied, as data URIs of pictures."""
    step = max(1, len(samples) // MOST_FED)
    view, pictures = augmented_view(preprocessing, augment), []
    for sample in samples[::step][:MOST_FED]:
        try:
            image = read(root / sample.file, value_range=preprocessing.value_range, bands=preprocessing.bands).content
        except UndecodableError:
            continue
        with forked(derive(seed, "report", sample.file)):
            numbers = view(image).permute(1, 2, 0).numpy()
        picture = picture_of(numbers) if preprocessing.bands.are_colours else picture_of(numbers[:, :, :1])
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        pictures.append(data_uri(picture, "JPEG"))
    return tuple(pictures)


def looked_at(backbone: Backbone, answers: Answered, *, classes: Sequence[str], root: Path) -> tuple[LitImage, ...]:
    """Return where the network looked in its surest mistakes or, if there are none, in its least sure answers.

    There is nothing of a network that torch.fx cannot follow, and of pictures that are not in colours.
    """
    own = backbone.preprocessing
    cases = (answers.mistakes or answers.least_sure)[:MOST_LOOKED]
    if not own.bands.are_colours or not cases:
        return ()
    try:
        eyes = Saliency(backbone.model, backbone.groups, image_size=own.image_size)
    except BackboneError:
        return ()
    index = {name: place for place, name in enumerate(classes)}
    lit = [_lit(eyes, case, own, index, root) for case in cases]
    return tuple(one for one in lit if one is not None)


def first_filters(model: nn.Module) -> str:
    """Return the filters of a network's first convolution over colours as one picture; empty if it has none.

    Each is stretched between its own least and greatest weight.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels not in (1, 3) or min(first.kernel_size) < 3:
        return ""
    filters = first.weight.detach().float().cpu().numpy()[:MOST_FILTERS].transpose(0, 2, 3, 1)  # (F, H, W, C)
    low, high = (edge(filters, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    pixels = np.round(255 * (filters - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    step = FILTER_SIDE + 2
    rows = ceil(len(pixels) / COLUMNS)
    sheet = Image.new("RGB", (step * min(len(pixels), COLUMNS), step * rows), "white")
    for place, one in enumerate(pixels):
        tile = Image.fromarray(one.repeat(3, axis=2) if one.shape[2] == 1 else one).resize(
            (FILTER_SIDE, FILTER_SIDE), Image.Resampling.NEAREST
        )
        sheet.paste(tile, (step * (place % COLUMNS), step * (place // COLUMNS)))
    return data_uri(sheet, "PNG")


def _lit(eyes: Saliency, case: AnsweredImage, own: Preprocessing, index: dict[str, int], root: Path) -> LitImage | None:
    try:
        view = plain_view(own)(read(root / case.file, value_range=own.value_range).content)  # (3, H, W) uint8
    except UndecodableError:
        return None
    weight = next(eyes.model.parameters())
    image = normalise(view.to(weight.device).unsqueeze(0), own)[0].to(weight.dtype)
    shown = [_dimmed(view, eyes(image, index[name])) for name in dict.fromkeys((case.guess, case.truth))]
    return LitImage(case, shown[0], shown[1] if len(shown) > 1 else "") if shown[0] else None


def _dimmed(view: Tensor, speaks: Tensor | None) -> str:  # (3, H, W) uint8, (H, W)
    if speaks is None:
        return ""
    light = DIMMED + (1 - DIMMED) * speaks
    pixels = (view.float() * light).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    return data_uri(image, "JPEG")
