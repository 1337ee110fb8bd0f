"""Backbones worth ranking when none are named, from the weakest to the strongest."""

from __future__ import annotations

from finetune.backbone.catalogue import find
from finetune.backbone.stored import place_of
from finetune.settings import DEFAULT_BACKBONE, EMBEDDED

# Small to medium, of different families and pretraining; from the weakest published top-1 on ImageNet
# to the strongest. Source: timm's results/results-imagenet.csv and model cards.
SHORTLIST = (
    EMBEDDED,
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "tf_efficientnet_lite0.in1k",
    "mobilenetv3_large_100.ra_in1k",
    "tf_efficientnet_lite1.in1k",
    DEFAULT_BACKBONE,
    "regnety_016.tv2_in1k",
    "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "convnext_nano.in12k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
)


def on_this_machine() -> tuple[str, ...]:
    """Return the names of the short list whose weights need no network."""
    return tuple(name for name in SHORTLIST if (entry := find(name)) and place_of(entry.weights))


def standing(name: str) -> float | None:
    """Return the rank of a timm name among backbones in general, higher for stronger; None if unknown."""
    entry = find(name)
    full = entry.full_name if entry and name not in SHORTLIST else name
    return float(SHORTLIST.index(full)) if full in SHORTLIST else None
