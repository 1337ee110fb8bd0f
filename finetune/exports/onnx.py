"""A model as an ONNX file, and the proof that a program which knows nothing else gets the same from image files.

Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.backbone.onnx_graph import EXPORT_ERRORS, write_graph
from finetune.backbone.weights import first_line
from finetune.errors import ExportError
from finetune.exports.client import INPUT, OUTPUT, Client, scale_size
from finetune.images.decoding import decoding_steps
from finetune.tasks import TASKS, Task
from finetune.types import LONGEST, Preprocessing

BATCHES = (1, 2, 7)
Logits = NDArray[np.float32]  # (B, K)
TOLERANCE = 1e-3  # of the largest logit, in float32
ROUNDING = 1e-6  # of the largest number, in float32


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a client's logits lie from the model's, on real image files at several batch sizes."""

    num_images: int
    batch_sizes: tuple[int, ...]
    largest_logit: float
    largest_difference: float
    same_top1: bool  # of several classes: the same ones; of numbers there is nothing to be the same
    deviation: float | None = None  # of the numbers of train, where a number is estimated

    @property
    def is_proven(self) -> bool:
        """Largest difference at most 1e-3 of the largest logit, same answer wherever the margin exceeds it.

        A number may differ by 1e-3 of the deviation of the numbers of train, and by what float32 rounds.
        """
        most = TOLERANCE * self.largest_logit
        if self.deviation is not None:
            most = max(TOLERANCE * self.deviation, ROUNDING * self.largest_logit)
        return self.same_top1 and self.largest_difference <= most


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    task: Task = "classify",
    thresholds: Sequence[float] = (),
) -> None:
    """Write an ONNX file: `images` (B, C, H, W) float32, normalised, to `logits` (B, K); B is free.

    Class names, preprocessing, the task, what makes answers of logits, and thresholds stand in the file's metadata,
    as JSON.

    Raises:
        ExportError: the network cannot be exported.
    """
    model = model.cpu().float().eval()
    example = torch.zeros(2, preprocessing.channels, *preprocessing.image_size)
    facts = {
        "classes": list(classes),
        "preprocessing": _facts(preprocessing),
        "task": task,
        "activation": TASKS[task].activation,
        **({"thresholds": list(thresholds)} if thresholds else {}),
    }
    metadata = {name: json.dumps(fact) for name, fact in facts.items()}
    try:
        write_graph(model, example, path, input_name=INPUT, output=OUTPUT, metadata=metadata)
    except EXPORT_ERRORS as error:
        raise ExportError(f"this network cannot be exported to ONNX: {first_line(error)}") from error


def _facts(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what a program has to know to prepare images; `exports/client.py` is one that does."""
    return {
        **asdict(preprocessing),
        "resize": scale_size(preprocessing.image_size, preprocessing.crop_pct),
        "longest": LONGEST,
        "decoding": decoding_steps(preprocessing),
    }


def prove(
    model: nn.Module, path: Path, images: Tensor, files: Sequence[Path], *, deviation: float | None = None
) -> Parity:
    """Compare what a client gets from files and an ONNX file with the model on the same images (N, C, H, W).

    At batch 1, 2 and 7.
    """
    client = Client(path)
    differences, logits = [], []
    same = True
    with torch.no_grad():
        for size in BATCHES:
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                if len(batch) < size and len(images) >= size:
                    continue
                ours = model(batch).numpy()  # (B, K)
                theirs = client.logits(files[start : start + size])
                difference = float(np.abs(ours - theirs).max())
                same = same and SAME[client.task](ours, theirs, difference, client.thresholds)
                differences.append(difference)
                logits.append(float(np.abs(ours).max()))
    return Parity(len(images), BATCHES, max(logits), max(differences), same, deviation)


def _same_top1(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    ranked = np.sort(ours, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > difference
    return bool((ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all())


def _same_sets(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    """Tell whether the same classes are said, wherever a logit is further from its threshold than both differ."""
    shares = np.clip(np.array(thresholds), 1e-12, 1 - 1e-12)
    limits = np.log(shares / (1 - shares))  # (K,)
    clear = np.abs(ours - limits) > difference
    return bool(((ours >= limits) == (theirs >= limits))[clear].all())


def _same_numbers(ours: Logits, theirs: Logits, difference: float, thresholds: Sequence[float]) -> bool:
    return True  # numbers that differ by so little are the same answer


SAME: dict[Task, Callable[[Logits, Logits, float, Sequence[float]], bool]] = {
    "classify": _same_top1,
    "multilabel": _same_sets,
    "regress": _same_numbers,
}
