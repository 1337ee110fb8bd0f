"""A loaded backbone made to fit: cut at an inner layer group, or with what its images hold as black and white."""

from __future__ import annotations

from dataclasses import replace

from finetune.backbone.load import Backbone
from finetune.backbone.staged import StagedClassifier


def with_range(backbone: Backbone, value_range: tuple[float, float] | None) -> Backbone:
    """Return the backbone with what is black and white in the images that it is shown."""
    return replace(backbone, preprocessing=replace(backbone.preprocessing, value_range=value_range))


def cut_at(backbone: Backbone, at: str) -> Backbone:
    """Return the backbone up to a layer group, with a linear head there."""
    num_classes: int = backbone.model.num_classes  # type: ignore[assignment]
    size = backbone.preprocessing.image_size
    staged = StagedClassifier(backbone.model, backbone.groups, at=at, num_classes=num_classes, image_size=size)
    return replace(backbone, model=staged, groups=staged.layer_groups(backbone.groups))
