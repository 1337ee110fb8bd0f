"""What a report shows of a model's answers, one class per image: by class, confusions, and the pictures.

Letters: N images, K classes.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.images.decode import UndecodableError, read_rgb
from finetune.images.levels import Range

MOST_IN_MATRIX = 20  # classes: of more, the commonest confusions are listed
MOST_CASES, MOST_PAIRS = 12, 20
SIDE, QUALITY = 120, 80  # pixels and JPEG quality of a picture


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How one class fares: how many images it has, how many are found, and how many of its guesses are right."""

    name: str
    num_train: int
    num_images: int
    recall: float | None
    precision: float | None
    f1: float | None
    taken_for: str  # the class that it is most often mistaken for


@dataclass(frozen=True, slots=True)
class AnsweredImage:
    """One image: its class, the class it is given, the probabilities of both, and the picture as a data URI."""

    file: str
    truth: str
    guess: str
    share: float
    share_of_truth: float
    picture: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of a model to the images of a split."""

    split: str
    num_images: int
    num_right: int
    by_class: tuple[ClassRow, ...]
    matrix: tuple[tuple[int, ...], ...] | None  # (K, K): rows are what is shown
    pairs: tuple[tuple[str, str, int], ...]  # shown, named, how often: the commonest confusions
    mistakes: tuple[AnsweredImage, ...]  # the surest first
    least_sure: tuple[AnsweredImage, ...]
    confidence: tuple[float, ...]  # (N,)
    hits: tuple[bool, ...]  # (N,)


def answered(
    split: str,
    logits: Tensor,
    targets: Tensor,
    *,
    classes: Sequence[str],
    files: Sequence[str],
    root: Path,
    num_train: Sequence[int],
    value_range: Range | None = None,
) -> Answered:
    """Return what a report shows of logits (N, K) against class indices (N,), for image files under a root."""
    shares = logits.double().softmax(dim=1).numpy()
    right, guesses = targets.numpy(), logits.argmax(dim=1).numpy()
    confidence, hits = shares.max(axis=1), guesses == right
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (right, guesses), 1)

    def case(place: int) -> AnsweredImage:
        truth, guess = int(right[place]), int(guesses[place])
        picture = _picture(root / files[place], value_range)
        of_both = float(shares[place, guess]), float(shares[place, truth])
        return AnsweredImage(files[place], classes[truth], classes[guess], *of_both, picture)

    wrong = np.flatnonzero(~hits)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_CASES]
    least = np.argsort(confidence, kind="stable")[:MOST_CASES]
    off = Counter({(i, j): int(counts[i, j]) for i, j in zip(*np.nonzero(counts), strict=True) if i != j}).most_common(
        MOST_PAIRS
    )
    return Answered(
        split=split,
        num_images=len(right),
        num_right=int(hits.sum()),
        by_class=tuple(_row(index, counts, classes, num_train) for index in range(len(classes))),
        matrix=tuple(map(tuple, counts.tolist())) if len(classes) <= MOST_IN_MATRIX else None,
        pairs=tuple((classes[i], classes[j], count) for (i, j), count in off),
        mistakes=tuple(case(place) for place in surest.tolist()),
        least_sure=tuple(case(place) for place in least.tolist()),
        confidence=tuple(confidence.tolist()),
        hits=tuple(hits.tolist()),
    )


def _row(index: int, counts: np.ndarray, classes: Sequence[str], num_train: Sequence[int]) -> ClassRow:
    shown, named, both = int(counts[index].sum()), int(counts[:, index].sum()), int(counts[index, index])
    others = counts[index].copy()
    others[index] = 0
    return ClassRow(
        name=classes[index],
        num_train=num_train[index],
        num_images=shown,
        recall=both / shown if shown else None,
        precision=both / named if named else None,
        f1=2 * both / (shown + named) if shown else None,
        taken_for=classes[int(others.argmax())] if others.any() else "",
    )


def _picture(file: Path, value_range: Range | None) -> str:
    """Return a small picture of an image file as a data URI; empty if it can no longer be read."""
    try:
        image = read_rgb(file, side=SIDE, value_range=value_range)
    except UndecodableError:
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return data_uri(image, "JPEG")


def data_uri(image: Image.Image, kind: Literal["JPEG", "PNG"]) -> str:
    """Return an image as a data URI."""
    content = io.BytesIO()
    image.save(content, format=kind, quality=QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
