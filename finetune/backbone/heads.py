"""A new head for a loaded network: for other classes, keeping those that its weights knew by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finetune.backbone.groups import head_modules
from finetune.backbone.pools import AUTO, OURS, check_pooled
from finetune.errors import BackboneError


def linear_classifier(model: nn.Module) -> nn.Linear | None:
    """Return the classifier of a network if it is one linear layer, else None."""
    heads = head_modules(model) if getattr(model, "num_classes", 0) else []
    return heads[0] if len(heads) == 1 and isinstance(heads[0], nn.Linear) else None


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return the head if it can be solved: it is one plain linear layer with a bias; else None."""
    heads = head_modules(model)
    if len(heads) == 1 and type(heads[0]) is nn.Linear and heads[0].bias is not None:
        return heads[0]
    return None


def renew_head(model: nn.Module, name: str, num_classes: int | None, *, pool: str = AUTO) -> None:
    """Give a network a fresh head (None keeps its own, or its size), on one of timm's pools where one is named.

    Raises:
        BackboneError: it has no classifier, or no pool that could be exchanged.
    """
    is_own = pool in (AUTO, *OURS)
    if num_classes is None and is_own:
        return
    if not hasattr(model, "reset_classifier"):
        raise BackboneError(f"{name} has no classifier to train")
    if is_own:
        model.reset_classifier(num_classes)  # type: ignore[operator]
        return
    check_pooled(model, pool, name)
    try:
        model.reset_classifier(num_classes or model.num_classes, pool)  # type: ignore[operator]
    except (AssertionError, ValueError) as error:
        raise BackboneError(f"{name} cannot have backbone.pool = {pool!r}: {error}") from error


@torch.no_grad()
def keep_rows(
    old: Sequence[nn.Module], new: Sequence[nn.Module], before: Sequence[str], now: Sequence[str]
) -> tuple[str, ...]:
    """Copy the rows of the classes that a classifier knew by name into the new one, and return these classes."""
    places = {name: place for place, name in enumerate(before)}
    known = [name for name in now if name in places]
    rows = [list(now).index(name) for name in known], [places[name] for name in known]
    pairs = list(zip(old, new, strict=False))
    is_alike = all(
        getattr(a, "weight", torch.empty(0)).shape[1:] == getattr(b, "weight", torch.empty(1, 1)).shape[1:]
        for a, b in pairs
    )
    if not known or not is_alike:
        return ()
    for source, target in pairs:
        for name, tensor in target.named_parameters():
            tensor[rows[0]] = source.get_parameter(name)[rows[1]]
    return tuple(known)
