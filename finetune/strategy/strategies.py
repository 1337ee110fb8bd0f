"""The strategies, in one table: what each trains, in which phases, and what "auto" means under it.

Pure, and free of torch. To add one: a row here, its name in `values.StrategyName`, a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetune.errors import RecipeError
from finetune.types import FreezePlan, GroupPlan, LayerGroup, Phase, Solver, Trains
from finetune.values import AUTO_LEVEL

GRADUAL_PHASES = 4  # the head, then the rest in three portions
LEAST_STEPS, MOST_EPOCHS = 200, 100  # a handful of images must be shown more often, or nothing would be learned


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy with every number settled."""

    strategy: str
    epochs: int
    lr: float
    layer_decay: float
    top_k: int | None = None  # layer groups of the backbone that are trained; None: all, if that is meant
    reinit: bool = False
    updates_norms: bool = False  # those of pretrained layers that are trained
    has_linear_head: bool = True
    lora_rank: int = 16


def strategy(name: str) -> Strategy:
    """Return the row of a strategy.

    Raises:
        RecipeError: it has none: auto and race choose among those that have.
    """
    if name not in STRATEGIES:
        raise RecipeError(f"strategy {name!r} has no phases of its own")
    return STRATEGIES[name]


def is_pretrained(name: str) -> bool:
    """Return whether a strategy begins from pretrained weights, as all that auto and race choose among do."""
    return name not in STRATEGIES or STRATEGIES[name].is_pretrained


def taking(number: str) -> tuple[str, ...]:
    """Return the strategies that take a number of the recipe: top_k or probe_at."""
    return tuple(name for name, row in STRATEGIES.items() if number in row.takes)


def cheaper_than(name: str) -> tuple[str, ...]:
    """Return the strategies that one may fall back to, each cheaper than the one before it."""
    chain: list[str] = []
    while (cheaper := STRATEGIES[chain[-1] if chain else name].cheaper) is not None:
        chain.append(cheaper)
    return tuple(chain)


def why_usual_level(name: str) -> str:
    """Return why auto is the usual level of augmentation: a strategy has another only if that loses on no data set."""
    return f"augment.level auto: {AUTO_LEVEL}; {STRATEGIES[name].level}"


def epochs_for(name: str, num_train: int | None, batch_size: int) -> int:
    """Return the epochs that "auto" means: those of the strategy, or as many as 200 steps take, up to 100."""
    usual = STRATEGIES[name].epochs
    if not num_train:
        return usual
    return max(usual, min(MOST_EPOCHS, -(-LEAST_STEPS // -(-num_train // batch_size))))


def phases(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    """Return the phases of a strategy over layer groups (of a probe at an inner group: those up to it).

    Raises:
        RecipeError: top-k with more groups than there are, too few epochs for the phases.
    """
    return strategy(choice.strategy).phases(choice, groups)


def up_to_epoch(planned: Sequence[Phase], done: Sequence[str]) -> tuple[Phase, ...]:
    """Return the phases as far as epochs were done in them; `done` names the phase of every epoch.

    Each keeps its schedule: the learning rate of an epoch is what it was.
    """
    kept = []
    for phase in planned:
        count = done.count(phase.name)
        if count:
            kept.append(phase if phase.solver == "lbfgs" else replace(phase, stop_after=count))
    return tuple(kept)


def is_full(choice: Choice, groups: Sequence[LayerGroup]) -> bool:
    """Return whether top-k covers the whole backbone."""
    return STRATEGIES[choice.strategy].phases is _top_k and choice.top_k == _depth(groups)


def retrained(planned: Sequence[Phase]) -> tuple[str, ...]:
    """Return the layer groups that any phase re-initialises, head included."""
    names = (item.group for phase in planned for item in phase.plan.groups if item.is_reinitialised)
    return tuple(dict.fromkeys(names))


def _head_only(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    return (_phase("head", choice, groups, depth=0),)


def _linear_probe(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    return (_probe(choice, groups, epochs=choice.epochs),)


def _top_k(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    depth = _checked_depth(choice, groups)
    return (_phase(f"top-{depth}", choice, groups, depth=depth),)


def _everything(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    return (_phase(choice.strategy, choice, groups, depth=_depth(groups)),)


def _lp_ft(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    first = _probe(choice, groups, epochs=max(1, choice.epochs // 3))
    _need_epochs(choice, 1 + first.epochs)
    depth = _depth(groups) if choice.top_k is None else _checked_depth(choice, groups)
    name = "full" if depth == _depth(groups) else f"top-{depth}"
    return (first, _phase(name, choice, groups, depth=depth, epochs=choice.epochs - first.epochs, depth_before=0))


def _gradual(choice: Choice, groups: Sequence[LayerGroup]) -> tuple[Phase, ...]:
    num_backbone = _depth(groups)
    count = min(GRADUAL_PHASES, num_backbone + 1)
    _need_epochs(choice, count)
    depths = [round(index * num_backbone / (count - 1)) for index in range(count)]
    shares = [choice.epochs * (i + 1) // count - choice.epochs * i // count for i in range(count)]
    before = [None, *depths[:-1]]
    return tuple(
        _phase(f"top-{depth}" if depth else "head", choice, groups, depth=depth, epochs=epochs, depth_before=earlier)
        for depth, epochs, earlier in zip(depths, shares, before, strict=True)
    )


def _probe(choice: Choice, groups: Sequence[LayerGroup], *, epochs: int) -> Phase:
    """Return the phase that solves the head, or trains it if it is more than one linear layer."""
    if choice.has_linear_head:
        return _phase("probe", choice, groups, depth=0, epochs=0, solver="lbfgs")
    return _phase("probe", choice, groups, depth=0, epochs=epochs)


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
    """Return one phase that trains the head and the last `depth` layer groups of the backbone.

    `depth_before` is the depth of the phase before it: what that one trained is not re-initialised.
    """
    renews = choice.reinit or not STRATEGIES[choice.strategy].is_pretrained
    plans = []
    for index, group in enumerate(groups):
        distance = len(groups) - 1 - index
        is_trained = distance <= depth
        is_new = is_trained and (depth_before is None or distance > depth_before)
        updates = renews or group.is_head or choice.updates_norms
        plans.append(
            GroupPlan(
                group.name,
                trains=_trains(choice, group) if is_trained else "none",
                is_reinitialised=is_new and (group.is_head or renews),
                lr_scale=choice.layer_decay**distance if is_trained else 0.0,
                norm_statistics="updated" if is_trained and updates else "frozen",
                rank=choice.lora_rank if is_trained and _trains(choice, group) == "lora" else 0,
            )
        )
    return Phase(name, FreezePlan(tuple(plans)), choice.epochs if epochs is None else epochs, choice.lr, solver)


def _trains(choice: Choice, group: LayerGroup) -> Trains:
    """Return what a strategy trains of a trained layer group; of the head, everything."""
    return "all" if group.is_head else STRATEGIES[choice.strategy].trains


def _checked_depth(choice: Choice, groups: Sequence[LayerGroup]) -> int:
    names = [group.name for group in groups if not group.is_head]
    depth = 1 if choice.top_k is None else choice.top_k
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


def _depth(groups: Sequence[LayerGroup]) -> int:
    """Return the number of layer groups of the backbone."""
    return sum(not group.is_head for group in groups)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to train, and what "auto" means under it; the learning rate is the head's, for AdamW."""

    summary: str
    phases: Callable[[Choice, Sequence[LayerGroup]], tuple[Phase, ...]]
    epochs: int
    lr: float
    weight_decay: float
    layer_decay: float
    takes: frozenset[str] = frozenset()  # of the recipe's top_k and probe_at
    top_k: int | None = None  # that "auto" means; None: every layer group
    cheaper: str | None = None  # what auto falls to where the time is too short
    is_pretrained: bool = True
    trains: Trains = "all"  # of each layer group of the backbone
    unused: Mapping[str, str] = field(default_factory=dict)  # keys or sections of the recipe, and why it has no use
    source: str = ""
    smoothing: float = 0.0  # of labels, but for top-k 1
    level: str = "no other level was measured with it"  # why auto is the usual level of augmentation


_PARTLY = {"strategy.reinit": "trains a part of each layer, which new weights would not fit"}

_NO_BETTER = "with 10 images per class none, light and heavy were no better"

STRATEGIES: dict[str, Strategy] = {
    "head-only": Strategy(
        "the head, on a frozen backbone",
        _head_only,
        epochs=30,
        lr=1e-3,
        weight_decay=1e-2,
        layer_decay=1.0,
        cheaper="linear-probe",
        unused={
            "augment.features": "trains on pooled features, not maps",
            "regularise.cutmix": "trains on features, with nothing to cut",
            "regularise.drop_path": "trains no residual blocks",
            "regularise.l2_sp": "trains a new head, which has no pretrained values",
        },
        level=_NO_BETTER,
    ),
    "linear-probe": Strategy(
        "the head, solved to convergence, on the output of one layer group or of several",
        _linear_probe,
        epochs=30,
        lr=1e-3,
        weight_decay=1e-2,
        layer_decay=1.0,
        takes=frozenset({"probe_at"}),
        unused={
            "augment.features": "solves the head on pooled features, not maps",
            "regularise": "solves the head and takes no steps",
            "strategy.initialiser": "solves the head, whatever its initial weights",
        },
        level=_NO_BETTER,
    ),
    "top-k": Strategy(
        "the head and the last k layer groups of the backbone",
        _top_k,
        epochs=12,
        lr=1e-3,
        weight_decay=5e-2,
        layer_decay=0.7,
        takes=frozenset({"top_k"}),
        top_k=1,
        cheaper="head-only",
        smoothing=0.1,  # docs/log.md, 2026-11-30
        level=_NO_BETTER,
    ),
    "full": Strategy(
        "everything, with a learning rate that shrinks towards the input",
        _everything,
        epochs=12,
        lr=1e-3,
        weight_decay=5e-2,
        layer_decay=0.7,
        cheaper="top-k",
        level="with 10 images per class heavy won 3 points on textures and lost 1 on ultrasound",
    ),
    "lp-ft": Strategy(
        "linear-probe, then full or the last k layer groups",
        _lp_ft,
        epochs=12,
        lr=3e-4,
        weight_decay=5e-2,
        layer_decay=0.7,
        takes=frozenset({"top_k"}),
        cheaper="top-k",
        source="Kumar et al. 2022, arXiv:2202.10054",
    ),
    "gradual": Strategy(
        "the head, then more layer groups phase by phase",
        _gradual,
        epochs=12,
        lr=1e-3,
        weight_decay=5e-2,
        layer_decay=0.7,
        cheaper="top-k",
        source="Howard & Ruder 2018, arXiv:1801.06146",
    ),
    "norm-only": Strategy(
        "the head, and the weights and biases of norms, everywhere",
        _everything,
        epochs=12,
        lr=3e-3,
        weight_decay=5e-2,
        layer_decay=1.0,
        cheaper="head-only",
        trains="norm",
        unused=_PARTLY,
        source="Frankle et al. 2021, arXiv:2003.00152",
    ),
    "bias-only": Strategy(
        "the head, and every bias",
        _everything,
        epochs=12,
        lr=3e-3,
        weight_decay=5e-2,
        layer_decay=1.0,
        cheaper="head-only",
        trains="bias",
        unused=_PARTLY,
        source="Ben Zaken et al. 2022, arXiv:2106.10199; Cai et al. 2020, arXiv:2007.11622",
    ),
    "lora": Strategy(
        "the head, and of every matrix what a product of two thin ones adds to it",
        _everything,
        epochs=12,
        lr=1e-3,
        weight_decay=5e-2,
        layer_decay=1.0,
        cheaper="head-only",
        trains="lora",
        unused={**_PARTLY, "regularise.l2_sp": "holds the pretrained weights as they are"},
        source="Hu et al. 2021, arXiv:2106.09685",
    ),
    "scratch": Strategy(
        "everything, re-initialised",
        _everything,
        epochs=30,
        lr=3e-3,
        weight_decay=5e-2,
        layer_decay=1.0,
        cheaper="top-k",
        is_pretrained=False,
        unused={"regularise.l2_sp": "starts without pretrained values"},
    ),
}
