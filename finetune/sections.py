"""The sections of the recipe that keep a network from learning its images by heart: augmentation and regularisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.values import AUTO_LEVEL, AugmentLevel, Auto, Fraction, NoneWord, NotNegative, Section, Share


class RegulariseSection(Section):
    dropout: Fraction | NoneWord = Field(
        "none", description="Share of the features before the head that a step drops. none: as the network is."
    )
    drop_connect: Fraction = Field(0.0, description="Share of the head's weights that a step leaves out; usual: 0.5.")
    drop_path: Fraction | NoneWord = Field(
        "none",
        description="Stochastic depth: the share of steps that leave out the last residual block, fewer the earlier"
        " ones. none: as the network is.",
    )
    mixup: NotNegative = Field(
        0.0, description="Mix images of a batch, and their classes, by shares of Beta(a, a); 0 is off, 0.2 usual."
    )
    cutmix: NotNegative = Field(
        0.0, description="Paste a part of another image of the batch, by areas of Beta(a, a); 0 is off, 1 usual."
    )
    l1: NotNegative = Field(0.0, description="Weight of the sum of absolute weights; not of norms and biases.")
    l2_sp: NotNegative = Field(
        0.0, description="Weight of half the squared distance of the weights from their pretrained values."
    )
    ema: Fraction | NoneWord = Field(
        "none",
        description="Decay of an average of the weights over the steps of a phase, which val judges and the run"
        " delivers: 0.99 or more.",
    )


class AugmentSection(Section):
    level: AugmentLevel = Field(
        "auto",
        description="How far train images vary: none is the plain view, the others set the pieces below that are auto."
        f" auto: {AUTO_LEVEL} (formerly called basic).",
    )
    min_crop: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Auto = Field(
        "auto", description="Smallest share of the image that a random crop shows."
    )
    horizontal_flip: Share | Auto = Field("auto", description="Probability of a left-right flip.")
    vertical_flip: Share | Auto = Field("auto", description="Probability of an upside-down flip.")
    color_jitter: Share | Auto = Field("auto", description="Strength of random brightness, contrast and saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] | Auto = Field(
        "auto", description="Strength of a random shift of the hue, as a share of the circle."
    )
    rotate: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)] | Auto = Field(
        "auto", description="Degrees, to either side, of a random rotation."
    )
    erase: Share | Auto = Field("auto", description="Probability that a random rectangle is blotted out (cutout).")
    policy: Literal["none", "randaugment", "trivial", "augmix"] | Auto = Field(
        "auto", description="A published recipe of random operations: RandAugment, TrivialAugment, AugMix."
    )
    features: Share = Field(
        0.0, description="Strength of a random brightness for each channel of the feature maps of a trunk (FroFA)."
    )
