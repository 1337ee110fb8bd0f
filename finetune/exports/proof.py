"""The proof of an export: a client that knows only what the export says gets the model's answers from image files.

Letters: B batch, N images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.read_ahead import MOST_THREADS, read_ahead
from finetune.evaluation.metrics import measure_task
from finetune.exports.described import Described
from finetune.process import num_cores
from finetune.tasks import TASKS, Task
from finetune.types import Event, OnEvent, ignore

BATCHES = (1, 2, 7)
TOLERANCE = 1e-3  # of the largest logit, in float32
TOLERANCE_OF_PIXELS = 2e-2  # the same where an export resizes images itself: its pixels are a level off here and there
ROUNDING = 1e-6  # of the largest number, in float32
BATCH = 32  # images of a whole split at a time
TIMES, MOST_SECONDS = 15, 4.0  # that a network is timed, and how long that may take
Logits = NDArray[np.float32]  # (B, K)


class Stranger(Protocol):
    """A program that has an export and nothing else: what it makes of a file, and what the export answers."""

    def read(self, file: Path) -> NDArray[Any]:
        """Return an image file as the export takes it."""

    def answer(self, images: Sequence[NDArray[Any]]) -> Logits:
        """Return the logits (B, K) of images that were read."""


@dataclass(frozen=True, slots=True)
class WholeSplit:
    """All images of a split: their files, the model's logits (N, K), and their targets."""

    name: str
    files: Sequence[Path]
    logits: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class ProofImages:
    """Real images (N, C, H, W) as evaluation sees them, and their files; where it is asked, a whole split.

    Numbers of 8 bits get their ranges from `calibration`, files of train.
    """

    images: Tensor
    files: Sequence[Path]
    whole: WholeSplit | None = None
    calibration: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class OnWhole:
    """What model and export reach on a whole split, by the first metric of the task, and how many answers are alike."""

    split: str
    num_images: int
    measure: str
    model: float
    export: float
    num_same: int | None  # of numbers there is nothing to be the same

    @property
    def loss(self) -> float:
        """By how many points the export falls behind the model."""
        return 100 * (self.model - self.export)


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a client's logits lie from the model's, on real image files at several batch sizes.

    An export in less precise numbers is proven by what it loses on the whole split: at most `max_loss` points.
    """

    num_images: int
    batch_sizes: tuple[int, ...]
    largest_logit: float
    largest_difference: float
    same_top1: bool  # of several classes: the same ones; of numbers there is nothing to be the same
    deviation: float | None = None  # of the numbers of train, where a number is estimated
    whole: OnWhole | None = None
    max_loss: float | None = None
    tolerance: float = TOLERANCE
    milliseconds: dict[str, float] = field(default_factory=dict)  # for one image: of the model, of the export
    fp32_bytes: int | None = None  # of numbers in 8 bits: the size of the same file in fp32, which is timed, too

    @property
    def is_proven(self) -> bool:
        """Largest difference at most 1e-3 of the largest logit, same answer wherever the margin exceeds it.

        A number may differ by 1e-3 of the deviation of the numbers of train, and by what float32 rounds. Where the
        export resizes images itself, by 2e-2 of both.
        """
        if self.max_loss is not None:
            return self.whole is not None and self.whole.loss <= self.max_loss + 1e-9
        most = self.tolerance * self.largest_logit
        if self.deviation is not None:
            most = max(self.tolerance * self.deviation, ROUNDING * self.largest_logit)
        return self.same_top1 and self.largest_difference <= most

    @property
    def failure(self) -> str:
        """What is wrong, in words."""
        if self.max_loss is not None and self.whole is not None:
            whole = self.whole
            return (
                f"it reaches {whole.measure} {whole.export:.3f} on {whole.split}, and the model {whole.model:.3f}:"
                f" {whole.loss:.1f} points are lost, at most {self.max_loss:g} allowed"
            )
        return (
            f"logits differ by up to {self.largest_difference:.2e} at a largest logit of {self.largest_logit:.2e}"
            + ("" if self.same_top1 else ", and an answer differs")
        )


def prove(
    model: nn.Module,
    stranger: Stranger,
    proof: ProofImages,
    described: Described,
    *,
    max_loss: float | None = None,
    tolerance: float = TOLERANCE,
    on_event: OnEvent = ignore,
) -> Parity:
    """Compare what a stranger gets from files with what the model says of the same images, at batch 1, 2 and 7.

    Where the proof has a whole split, on that, too.
    """
    images, files = proof.images, proof.files
    differences, logits, same = [0.0], [0.0], True
    alike = SAME[described.task]
    with torch.no_grad():
        for size in BATCHES:
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                if len(batch) < size and len(images) >= size:
                    continue
                ours = model(batch).numpy()  # (B, K)
                theirs = stranger.answer([stranger.read(file) for file in files[start : start + size]])
                differences.append(float(np.abs(ours - theirs).max()))
                same = same and alike(ours, theirs, differences[-1], described.thresholds)
                logits.append(float(np.abs(ours).max()))
        read = stranger.read(files[0])
        took = milliseconds({"model": lambda: model(images[:1]), "export": lambda: stranger.answer([read])})
    whole = None
    if proof.whole is not None:
        whole, differs, is_alike = _on_whole(stranger, proof.whole, described, on_event)
        differences.append(differs)
        same = same and is_alike
    return Parity(
        len(images),
        BATCHES,
        max(logits),
        float(np.max(differences)),
        same,
        described.deviation,
        whole,
        max_loss,
        tolerance,
        took,
    )


def _on_whole(
    stranger: Stranger, whole: WholeSplit, described: Described, on_event: OnEvent
) -> tuple[OnWhole, float, bool]:
    """Return what a stranger reaches on a split, how far its logits are, and whether its answers are the model's."""
    theirs = logits_of_files(
        stranger.read, stranger.answer, whole.files, batch_size=BATCH, what=f"{whole.name} images through the export",
        on_event=on_event,
    )  # fmt: skip
    ours = whole.logits.numpy()
    difference = float(np.abs(ours - theirs).max())
    task, limits = described.task, described.thresholds
    measure = TASKS[task].score
    of_model, of_export = (
        measure_task(task, torch.from_numpy(rows), whole.targets, thresholds=limits)[measure].value
        for rows in (ours, theirs)
    )
    num_same = None if task == "regress" else int((_said(task, ours, limits) == _said(task, theirs, limits)).sum())
    on_whole = OnWhole(whole.name, len(ours), measure, of_model, of_export, num_same)
    return on_whole, difference, SAME[task](ours, theirs, difference, limits)


def logits_of_files(
    read: Callable[[Path], NDArray[Any]],
    answer: Callable[[Sequence[NDArray[Any]]], Logits],
    files: Sequence[Path],
    *,
    batch_size: int,
    what: str,
    on_event: OnEvent = ignore,
) -> Logits:
    """Return the logits (N, K) of image files, read by threads while those before are answered."""
    found: list[Logits] = []
    batches = (files[start : start + batch_size] for start in range(0, len(files), batch_size))
    for images in read_ahead(read, batches, num_threads=num_cores(most=MOST_THREADS)):
        found.append(answer(images))
        on_event(Event.progress(what, sum(map(len, found)), len(files)))
    return np.concatenate(found)


def milliseconds(networks: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return how long each takes: the least of some times in turn, as other work on a machine only adds to it."""
    took: dict[str, list[float]] = {name: [] for name in networks}
    began = time.perf_counter()
    for _ in range(TIMES):
        for name, run in networks.items():
            start = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - start)
        if time.perf_counter() - began > MOST_SECONDS:
            break
    return {name: round(1000 * min(seconds), 3) for name, seconds in took.items()}


def _said(task: Task, logits: Logits, thresholds: Sequence[float]) -> NDArray[Any]:
    """Return what is said of each image, so that equal things are equal: (N,)."""
    if task == "classify":
        return np.asarray(logits.argmax(axis=1))
    return np.array(["".join("01"[int(one)] for one in row) for row in logits >= _limits(thresholds)])


def _limits(thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return the logits (K,) from which on classes are said."""
    shares = np.clip(np.array(thresholds, dtype=np.float64), 1e-12, 1 - 1e-12)
    limits: NDArray[np.float64] = np.log(shares / (1 - shares))
    return limits


def _same_top1(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    ranked = np.sort(ours, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > difference
    return bool((ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all())


def _same_sets(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    """Return whether the same classes are said, wherever a logit is further from its threshold than both differ."""
    limits = _limits(thresholds)
    clear = np.abs(ours - limits) > difference
    return bool(((ours >= limits) == (theirs >= limits))[clear].all())


def _same_numbers(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    return True  # numbers that differ by so little are the same answer


SAME: dict[Task, Callable[[Logits, Logits, float, Sequence[float]], bool]] = {
    "classify": _same_top1,
    "multilabel": _same_sets,
    "regress": _same_numbers,
}
