"""The files of a data set apart from what they show: sizes, formats, grey or colour.

Letters: N images, K classes, V values of a trait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bands import COLOURS, Bands
from finetune.images.files import FORMS
from finetune.images.thumbnails import Looks

GIVES_AWAY = 0.2  # share of the entropy of the class that a trait must explain to be named


@dataclass(frozen=True, slots=True)
class Pictures:
    """Sizes (width, height) in order of area, how many images have each format, and how many are grey."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    formats: dict[str, int]
    num_grey: int  # of stacks none
    channels: int = 3  # that are read of each image, see `bands`
    shown: tuple[float, float] | None = None  # the share that the plain view shows: the median, and the least


@dataclass(frozen=True, slots=True)
class GiveAway:
    """A trait that gives the class away: how much of it, and how many images of each class have each value."""

    trait: str
    share: float
    counts: dict[str, dict[str, int]]


def pictures_of(looks: Looks, bands: Bands = COLOURS) -> Pictures:
    """Return a summary of the images of a data set (N,), read in these bands."""
    order = np.argsort(looks["width"].astype(np.int64) * looks["height"], kind="stable")
    ends = (looks[order[place]] for place in (0, len(order) // 2, -1))
    sizes: list[tuple[int, int]] = [(int(row["width"]), int(row["height"])) for row in ends]
    formats = Counter(FORMS[index] for index in looks["format"].tolist())
    num_grey = int(looks["is_grey"].sum())
    return Pictures(sizes[0], sizes[1], sizes[2], dict(formats.most_common()), num_grey, bands.count)


def shown_shares(looks: Looks, *, crop_pct: float, crop_mode: str) -> tuple[float, float]:
    """Return the share of an image that the plain view shows: the median over the images, and the least.

    The centre crop of a square is the middle of the shorter side; on a border or squashed an image is shown whole.
    """
    if crop_mode != "center":
        return 1.0, 1.0
    sides = np.sort(np.stack([looks["width"], looks["height"]]).astype(np.float64), axis=0)
    shares = np.minimum(crop_pct, 1.0) ** 2 * sides[0] / sides[1]
    return float(np.median(shares)), float(shares.min())


def give_aways(looks: Looks, labels: NDArray[np.int64], classes: tuple[str, ...]) -> list[GiveAway]:
    """Return the traits of files that give away the class (N,) of images, the most telling first.

    A classifier may learn them in place of what it should see. A trait is named when its mutual
    information with the class is a fifth or more of the entropy of the class, less what chance gives
    (V - 1) (K - 1) / (2 N).
    """
    telling = []
    for trait, values in _traits(looks).items():
        share = _share(values, labels)
        if share >= GIVES_AWAY:
            counts: dict[str, Counter[str]] = {}
            for value, label in zip(values.tolist(), labels.tolist(), strict=True):
                counts.setdefault(value, Counter())[classes[label]] += 1
            telling.append(
                GiveAway(trait, share, {value: dict(count.most_common()) for value, count in counts.items()})
            )
    return sorted(telling, key=lambda give_away: -give_away.share)


def _traits(looks: Looks) -> dict[str, NDArray[np.str_]]:
    shorter = np.minimum(looks["width"], looks["height"]).astype(np.float64)
    low = (2 ** np.floor(np.log2(shorter))).astype(np.int64)
    ratio = looks["width"] / looks["height"]
    return {
        "the file format": np.array(FORMS)[looks["format"]],
        "whether it is grey": np.where(looks["is_grey"] == 1, "grey", "in colour"),
        "the size": np.array([f"{side} to {2 * side - 1} pixels" for side in low.tolist()]),
        "the shape": np.select([ratio > 1.02, ratio < 0.98], ["wide", "tall"], "square"),
    }


def _share(values: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the share of the entropy of labels (N,) that values (N,) explain, corrected for chance."""
    _, value = np.unique(values, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    joint = np.zeros((value.max() + 1, label.max() + 1))
    np.add.at(joint, (value, label), 1 / len(labels))
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    told = float((joint * np.log(np.where(joint > 0, joint / apart, 1))).sum())
    shares = joint.sum(axis=0)
    entropy = -float((shares * np.log(shares)).sum())
    chance = (joint.shape[0] - 1) * (joint.shape[1] - 1) / (2 * len(labels))
    return max(0.0, told - chance) / entropy if len(shares) > 1 else 0.0
