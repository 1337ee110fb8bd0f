"""Weights of several runs averaged into one model, if they began at the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from finetune.checkpoint.contents import Beginning, read_as
from finetune.checkpoint.saved import SavedRun
from finetune.errors import CheckpointError

HINT = "`finetune ensemble` averages the answers of such runs."


def mean_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the tensors of several models, taken in double precision.

    What all have in common, frozen layers above all, is copied bit for bit; so are counts, from the first.
    """
    first = states[0]
    return {key: _mean([state[key] for state in states]) for key in first}


def check_one_start(runs: Sequence[SavedRun]) -> None:
    """Check that the weights of runs can be averaged: they share a network and a starting point.

    Raises:
        CheckpointError: they cannot, with the reason.
    """
    for one, other in pairwise(runs):
        pair = f"{one.folder.path} and {other.folder.path} cannot be a soup"
        if reason := next(_reasons(one, other), None):
            raise CheckpointError(f"{pair}: {reason}", hint=HINT)


def heads_begin_alike(runs: Sequence[SavedRun]) -> bool:
    """Return whether the new heads of runs were drawn alike."""
    return len({(run.recipe.train.seed, run.recipe.strategy.initialiser) for run in runs}) == 1


def _reasons(one: SavedRun, other: SavedRun) -> Iterator[str]:
    names = [run.backbone.architecture.registered for run in (one, other)]
    if names[0] != names[1]:
        yield f"one is a {names[0]}, the other a {names[1]}"
    shapes = [{key: tuple(tensor.shape) for key, tensor in run.backbone.model.state_dict().items()}
              for run in (one, other)]  # fmt: skip
    if shapes[0] != shapes[1]:
        key = next(key for key in {**shapes[0], **shapes[1]} if shapes[0].get(key) != shapes[1].get(key))
        yield f"their networks differ ({key} is not the same)"
    began = [read_as(Beginning, run.folder.began, has_format=True) for run in (one, other)]
    if began[0].weights != began[1].weights:
        yield "they began from different backbone weights, which cannot be averaged"
    if any(_draws_layers(run) for run in (one, other)) and not heads_begin_alike((one, other)):
        yield "layers were re-initialised, and drawn differently in each (train.seed, strategy.initialiser)"


def _draws_layers(run: SavedRun) -> bool:
    return run.recipe.strategy.reinit or run.recipe.strategy.name == "scratch"


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point() or all(torch.equal(first, other) for other in tensors[1:]):
        return first.clone()
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(first.dtype)
