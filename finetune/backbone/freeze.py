"""Putting a freeze plan into effect: what has a gradient, what is in eval mode, what is re-initialised.

A frozen group is frozen whole: no gradient, batch-norm statistics fixed *and* used for normalising,
dropout and stochastic depth off. That holds whatever `train()` does to the model meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.layers import DropPath
from torch import nn

from finetune.backbone.blank import blank_images
from finetune.backbone.pools import MapPool
from finetune.errors import RecipeError
from finetune.types import FreezePlan, LayerGroup


def check_plan(plan: FreezePlan, groups: Sequence[LayerGroup]) -> None:
    """Check that a plan names every layer group exactly once, in order, and trains at least one.

    Raises:
        RecipeError: it does not.
    """
    planned, there = [item.group for item in plan.groups], [group.name for group in groups]
    if planned != there:
        raise RecipeError(f"the freeze plan covers {planned}, the network has {there}")
    if not plan.trained:
        raise RecipeError("the freeze plan trains nothing")


def moved_parameters(plan: FreezePlan, groups: Sequence[LayerGroup]) -> set[str]:
    """Return the parameters that training under a plan changes."""
    return {name for group in groups for name in group.moved(plan[group.name].trains)}


@contextmanager
def freezing(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup]) -> Iterator[Callable[[nn.Module], None]]:
    """Hold a model to a freeze plan inside the block; afterwards every parameter has a gradient again.

    A hook before every forward pass puts what is frozen into eval mode, so a `model.train()` inside
    the block does no harm. Yields a function that holds another module over the same layers (a part
    of the model) to the plan too.
    """
    check_plan(plan, groups)
    trained = moved_parameters(plan, groups)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    still = still_modules(model, plan, groups)

    def hold(*_: object) -> None:
        for module in still:
            if module.training:  # checking costs a hundredth of setting it, at every step
                module.training = False

    handles = [model.register_forward_pre_hook(hold)]
    try:
        yield lambda part: handles.append(part.register_forward_pre_hook(hold))
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(True)


def modules_by_group(model: nn.Module, groups: Sequence[LayerGroup]) -> dict[str, str | None]:
    """Return the layer group of every module, or None where it spans several.

    A module without parameters (dropout, stochastic depth) stands in the group of what comes next
    beside it, else of what came before; a pool of ours with the head.
    """
    head = next((group.name for group in groups if group.is_head), None)
    owner = {name: group.name for group in groups for name in group.parameters}
    order = {group.name: index for index, group in enumerate(groups)}
    group_by_module: dict[str, str | None] = {}

    def visit(module: nn.Module, path: str, inherited: str | None) -> None:
        below = {owner[_join(path, name)] for name, _ in module.named_parameters() if _join(path, name) in owner}
        mine = inherited if not below else (below.pop() if len(below) == 1 else None)
        mine = head if isinstance(module, MapPool) else mine
        group_by_module[path] = mine
        children = list(module.named_children())
        for index, (name, child) in enumerate(children):
            visit(child, _join(path, name), mine or _neighbour(children, index, path))

    def _neighbour(children: Sequence[tuple[str, nn.Module]], index: int, path: str) -> str | None:
        def groups_of(place: int) -> list[str]:
            name, child = children[place]
            names = (_join(_join(path, name), key) for key, _ in child.named_parameters())
            return sorted((owner[key] for key in names if key in owner), key=order.__getitem__)

        after = next((owners for place in range(index, len(children)) if (owners := groups_of(place))), None)
        if after:
            return after[0]
        before = next((owners for place in range(index, -1, -1) if (owners := groups_of(place))), None)
        return before[-1] if before else None

    visit(model, "", None)
    return group_by_module


def group_state(model: nn.Module, groups: Sequence[LayerGroup], names: Sequence[str]) -> list[str]:
    """Return the state-dict keys, parameters and buffers, that belong to some layer groups."""
    wanted = set(names)
    keys = [key for group in groups if group.name in wanted for key in group.parameters]
    places = modules_by_group(model, groups)
    keys += [name for name, _ in model.named_buffers() if places.get(name.rpartition(".")[0]) in wanted]
    present = model.state_dict().keys()
    return [key for key in keys if key in present]


def reinitialise(model: nn.Module, fresh: nn.Module, groups: Sequence[LayerGroup], names: Sequence[str]) -> None:
    """Give some layer groups the values they have in `fresh`, the same network as it is when new."""
    new, own = fresh.state_dict(), model.state_dict()
    for key in group_state(model, groups, names):
        own[key].copy_(new[key])


def still_modules(model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup]) -> list[nn.Module]:
    """Return the modules that are in eval mode under a freeze plan."""
    places = modules_by_group(model, groups)
    still = []
    for path, module in model.named_modules():
        place = places[path]
        if place is None:
            continue
        holds_statistics = getattr(module, "running_mean", None) is not None
        keeps_statistics = plan[place].norm_statistics == "frozen"
        if plan[place].is_frozen or (holds_statistics and keeps_statistics):
            still.append(module)
    return still


def drops_blocks(
    model: nn.Module, plan: FreezePlan, groups: Sequence[LayerGroup], *, image_size: tuple[int, int]
) -> bool:
    """Return whether any residual block is left out in training (stochastic depth) under a freeze plan.

    Found by passing an empty image through: some blocks have stochastic depth, but no shortcut around them.
    """
    still, called, modes = set(still_modules(model, plan, groups)), [], [(m, m.training) for m in model.modules()]
    drops = [module for module in model.modules() if isinstance(module, DropPath) and module.drop_prob]
    handles = [module.register_forward_pre_hook(lambda module, _: called.append(module)) for module in drops]
    try:
        with torch.no_grad():
            model.eval()(blank_images(model, image_size))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return any(module not in still for module in called)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
