"""From a strategy's name and numbers to phases: pure, and free of torch.

head-only     the head, on a frozen backbone
linear-probe  the head, solved to convergence, on the output of one layer group or of several
top-k         the head and the last k layer groups of the backbone
full          everything, with a learning rate that shrinks towards the input
lp-ft         linear-probe, then full or the last k layer groups (Kumar et al. 2022, arXiv:2202.10054)
gradual       the head, then more layer groups phase by phase (Howard & Ruder 2018, arXiv:1801.06146)
scratch       everything, re-initialised
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.errors import RecipeError
from finetune.types import FreezePlan, GroupPlan, LayerGroup, Phase, Solver

GRADUAL_PHASES = 4  # the head, then the rest in three portions


@dataclass(frozen=True, slots=True)
class Numbers:
    """What "auto" means under one strategy; the learning rate is the head's, for AdamW."""

    epochs: int
    lr: float
    weight_decay: float
    layer_decay: float


DEFAULTS: dict[str, Numbers] = {
    "head-only": Numbers(epochs=30, lr=1e-3, weight_decay=1e-2, layer_decay=1.0),
    "linear-probe": Numbers(epochs=30, lr=1e-3, weight_decay=1e-2, layer_decay=1.0),
    "top-k": Numbers(epochs=12, lr=1e-3, weight_decay=5e-2, layer_decay=0.7),
    "full": Numbers(epochs=12, lr=1e-3, weight_decay=5e-2, layer_decay=0.7),
    "lp-ft": Numbers(epochs=12, lr=3e-4, weight_decay=5e-2, layer_decay=0.7),
    "gradual": Numbers(epochs=12, lr=1e-3, weight_decay=5e-2, layer_decay=0.7),
    "scratch": Numbers(epochs=30, lr=3e-3, weight_decay=5e-2, layer_decay=1.0),
}
DEFAULT_TOP_K = {"top-k": 1}
LEAST_STEPS, MOST_EPOCHS = 200, 100  # a handful of images is shown more often, or nothing would be learned
SGD_FACTOR = 10.0  # sgd wants about ten times AdamW's learning rate


def epochs_for(strategy: str, num_train: int | None, batch_size: int) -> int:
    """Yield the epochs that "auto" means: those of the strategy, or as many as 200 steps take, up to 100."""
    usual = DEFAULTS[strategy].epochs
    if not num_train:
        return usual
    return max(usual, min(MOST_EPOCHS, -(-LEAST_STEPS // -(-num_train // batch_size))))


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy with every number settled."""

    strategy: str
    epochs: int
    lr: float
    layer_decay: float
    top_k: int | None = None  # layer groups of the backbone that are trained; None: all, where that is meant
    reinit: bool = False
    updates_norms: bool = False  # of pretrained layers that are trained
    has_linear_head: bool = True


def phases(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    """Yield the phases of a strategy over layer groups (of a probe at an inner group: those up to it).

    Raises:
        RecipeError: top-k with more groups than there are, too few epochs for the phases.
    """
    num_backbone = sum(not group.is_head for group in groups)
    name = choice.strategy
    if name == "head-only":
        return (_phase("head", choice, groups, depth=0),)
    if name == "linear-probe":
        return (_probe(choice, groups),)
    if name == "top-k":
        depth = _checked_depth(choice, groups)
        return (_phase(f"top-{depth}", choice, groups, depth=depth),)
    if name == "lp-ft":
        first = _probe(choice, groups)
        _need_epochs(choice, 1 + first.epochs)
        rest = choice.epochs - first.epochs
        depth = num_backbone if choice.top_k is None else _checked_depth(choice, groups)
        words = "full" if depth == num_backbone else f"top-{depth}"
        return (first, _phase(words, choice, groups, depth=depth, epochs=rest, depth_before=0))
    if name == "gradual":
        return _gradual(choice, groups)
    if name in ("full", "scratch"):
        return (_phase(name, choice, groups, depth=num_backbone),)
    raise RecipeError(f"strategy {name!r} has no phases of its own")


def up_to_epoch(planned: Sequence[Phase], done: Sequence[str]) -> tuple[Phase, ...]:
    """Yield the phases as far as epochs were done in them; `done` names the phase of every epoch.

    Each keeps its schedule: the learning rate of an epoch is what it was.
    """
    found = []
    for phase in planned:
        count = done.count(phase.name)
        if count:
            found.append(phase if phase.solver == "lbfgs" else replace(phase, stop_after=count))
    return tuple(found)


def is_full(choice: Choice, groups: Sequence[LayerGroup]) -> bool:
    """Tell whether top-k covers the whole backbone."""
    return choice.strategy == "top-k" and choice.top_k == sum(not group.is_head for group in groups)


def retrained(planned: Sequence[Phase]) -> tuple[str, ...]:
    """Yield the layer groups that any phase re-initialises, head included."""
    names = (item.group for phase in planned for item in phase.plan.groups if item.is_reinitialised)
    return tuple(dict.fromkeys(names))


def _probe(choice: Choice, groups: Sequence[LayerGroup]) -> Phase:
    if choice.has_linear_head:
        return _phase("probe", choice, groups, depth=0, epochs=0, solver="lbfgs")
    # A head that is more than one linear layer has no closed problem to solve: it is trained.
    share = choice.epochs if choice.strategy == "linear-probe" else max(1, choice.epochs // 3)
    return _phase("probe", choice, groups, depth=0, epochs=share)


def _gradual(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    num_backbone = sum(not group.is_head for group in groups)
    count = min(GRADUAL_PHASES, num_backbone + 1)
    _need_epochs(choice, count)
    depths = [round(index * num_backbone / (count - 1)) for index in range(count)]
    shares = [choice.epochs * (i + 1) // count - choice.epochs * i // count for i in range(count)]
    before = [None, *depths[:-1]]
    return tuple(
        _phase(f"top-{depth}" if depth else "head", choice, groups, depth=depth, epochs=epochs, depth_before=earlier)
        for depth, epochs, earlier in zip(depths, shares, before, strict=True)
    )


def _phase(
    name: str,
    choice: Choice,
    groups: Sequence[LayerGroup],
    *,
    depth: int,
    epochs: int | None = None,
    solver: Solver = "gradient",
    depth_before: int | None = None,
) -> Phase:
    """One phase that trains the head and the last `depth` layer groups of the backbone.

    `depth_before` is the depth of the phase before it: what that one trained is not re-initialised.
    """
    renews = choice.reinit or choice.strategy == "scratch"
    plans = []
    for index, group in enumerate(groups):
        distance = len(groups) - 1 - index
        is_trained = distance <= depth
        is_new = is_trained and (depth_before is None or distance > depth_before)
        updates = renews or group.is_head or choice.updates_norms
        plans.append(
            GroupPlan(
                group.name,
                trains="all" if is_trained else "none",
                is_reinitialised=is_new and (group.is_head or renews),
                lr_scale=choice.layer_decay**distance if is_trained else 0.0,
                norm_statistics="updated" if is_trained and updates else "frozen",
            )
        )
    return Phase(name, FreezePlan(tuple(plans)), choice.epochs if epochs is None else epochs, choice.lr, solver)


def _checked_depth(choice: Choice, groups: Sequence[LayerGroup]) -> int:
    names = [group.name for group in groups if not group.is_head]
    depth = DEFAULT_TOP_K["top-k"] if choice.top_k is None else choice.top_k
    if depth > len(names):
        raise RecipeError(
            f"strategy.top_k = {depth}: this backbone has {len(names)} layer groups",
            hint=f"From input to output: {', '.join(names)}.",
        )
    return depth


def _need_epochs(choice: Choice, count: int) -> None:
    if choice.epochs < count:
        raise RecipeError(
            f"train.epochs = {choice.epochs}: {choice.strategy} has {count} phases, and each needs an epoch"
        )
