"""Backbones worth ranking when none are named, and whether their weights are on this machine."""

from __future__ import annotations

from huggingface_hub import try_to_load_from_cache
from timm.models import get_pretrained_cfg

from finetune.settings import DEFAULT_BACKBONE, EMBEDDED

# Small to medium, of different families and pretraining; from the weakest published top-1 on ImageNet
# to the strongest. Source: timm's results/results-imagenet.csv and model cards.
SHORTLIST = (
    EMBEDDED,
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "mobilenetv3_large_100.ra_in1k",
    DEFAULT_BACKBONE,
    "regnety_016.tv2_in1k",
    "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "convnext_nano.in12k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def on_this_machine() -> tuple[str, ...]:
    """Yield the names of the short list whose weights need no network."""
    return tuple(name for name in SHORTLIST if has_weights_here(name))


def has_weights_here(name: str) -> bool:
    """Tell whether the weights of a name lie in this package or in the hub's cache."""
    if name == EMBEDDED:
        return True
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return False
    return any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in WEIGHT_FILES)


def standing(name: str) -> float | None:
    """Yield the place of a timm name among backbones in general, the strongest highest; None: not known."""
    if name in SHORTLIST:
        return float(SHORTLIST.index(name))
    config = get_pretrained_cfg(name)
    full = f"{config.architecture}.{config.tag}" if config is not None and config.tag else name
    return float(SHORTLIST.index(full)) if full in SHORTLIST else None
