"""A loaded backbone adapted: cut at an inner layer group, or for other images than it was trained on."""

from __future__ import annotations

from dataclasses import replace

from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier
from finetune.bands import Depth

FITS = {"crop": "center", "pad": "border", "squash": "squash"}  # and what timm calls them


def with_range(backbone: Backbone, value_range: tuple[float, float] | None) -> Backbone:
    """Return the backbone with a range of values: what is black and white in the images it sees."""
    return replace(backbone, preprocessing=replace(backbone.preprocessing, value_range=value_range))


def with_depth(backbone: Backbone, depth: Depth) -> Backbone:
    """Return the backbone with a depth: how much is kept of each channel of its images."""
    return replace(backbone, preprocessing=replace(backbone.preprocessing, depth=depth))


def with_fit(backbone: Backbone, fit: str) -> Backbone:
    """Return the backbone with a way in which images become squares; "auto" leaves it as it was trained."""
    if fit == "auto":
        return backbone
    own = backbone.preprocessing
    crop_pct = own.crop_pct if fit == "crop" else 1.0
    return replace(backbone, preprocessing=replace(own, crop_mode=FITS[fit], crop_pct=crop_pct))


def with_statistics(backbone: Backbone, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Backbone:
    """Return the backbone with the mean and deviation that standardise pixels between 0 and 1."""
    return replace(backbone, preprocessing=replace(backbone.preprocessing, mean=mean, std=deviation))


def cut_at(backbone: Backbone, at: str) -> Backbone:
    """Return the backbone up to a layer group, with a linear head there."""
    num_classes: int = backbone.model.num_classes  # type: ignore[assignment]
    size = backbone.preprocessing.image_size
    staged = StagedClassifier(backbone.model, backbone.groups, at=at, num_classes=num_classes, image_size=size)
    return replace(backbone, model=staged, groups=staged.layer_groups(backbone.groups))
