"""known.safetensors of a run folder: what its classifier knows, for `predict --unsure`."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import CheckpointError
from finetune.features.knowledge import FEWEST_VAL, Knowledge
from finetune.whole import whole_file

NAMES = ("features", "nearness", "confidence", "hits")


def write_known(path: Path, known: Knowledge) -> None:
    """Write what a classifier knows, whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    values = (known.nearness, known.confidence, known.hits)
    tensors = {"features": known.features.contiguous()} | {
        name: torch.from_numpy(value) for name, value in zip(NAMES[1:], values, strict=True)
    }
    with whole_file(path) as beside:
        save_file(tensors, beside)


def read_known(folder: RunFolder) -> Knowledge:
    """Return what the classifier of a finished run knows.

    Raises:
        CheckpointError: the run has none, or the file is damaged.
    """
    path = folder.known
    if not path.is_file():
        raise CheckpointError(
            f"{folder.path} cannot tell what it is unsure of: it has no {path.name}",
            hint=f"A run leaves one where val has {FEWEST_VAL} independent images or more and nothing is refitted."
            f" Without --unsure every image is named: finetune predict {shlex.quote(str(folder.path))} ...",
        )
    try:
        tensors = load_file(path)
        features, nearness, confidence, hits = (tensors[name] for name in NAMES)
        known = Knowledge(features, nearness.numpy(), confidence.numpy(), hits.numpy())
        if features.ndim != 2 or not len(features) or nearness.ndim != 1 or not len(nearness):
            raise ValueError("its tensors have the wrong shapes")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint=f"Put it back, or {folder.anew}") from error
    return known
