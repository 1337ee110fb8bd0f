"""What a plan would take: memory of a step, size of the cache, time on this machine.

Multiplications are counted on a network without weights; how long they take is measured on this
machine with random ones, forward and in training.

What is not covered: decoding, solving a head, and what else the machine does in the meantime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from finetune.backbone import load as backbones
from finetune.backbone.blank import blank_images
from finetune.backbone.cost import multiplications
from finetune.backbone.freeze import freezing
from finetune.backbone.load import Backbone
from finetune.features.divide import Divided, divide
from finetune.features.folding import folded_run
from finetune.features.graphs import IndivisibleError
from finetune.features.store import Layout
from finetune.prepare.batch_size import need_of
from finetune.prepare.batches import drawn_views, num_views
from finetune.prepare.inputs import architecture_of
from finetune.prepare.prepared import Prepared
from finetune.prepare.resolve import folds_norms, wanted_batch
from finetune.settings import Recipe
from finetune.timings import remember, remembered
from finetune.types import FreezePlan, GroupPlan, Phase

LARGEST = 100_000_000  # parameters of a network that is timed
TIMED_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a phase's model is cut: what the trunk hands to the tail for one image, and what it saves.

    `trunk_share` is the trunk's share of the multiplications of one forward pass, which run once for
    an image and view instead of once an epoch; `saved_share` is the share of all multiplications of
    the phase that this saves.
    """

    shapes: tuple[tuple[int, ...], ...]
    bytes_per_image: int
    trunk_share: float
    views: int
    cache_bytes: int
    saved_share: float


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations for one image: a forward pass, a step under a freeze plan, one that trains every layer, the trunk."""

    forward: int
    step: int
    everything: int
    trunk: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a phase takes: bytes of memory for a step of `batch` images, seconds of computing.

    `once_seconds` of them do not grow with the epochs: running the trunk for the cache, solving on it.
    """

    batch: int
    memory_bytes: int | None
    seconds: float | None
    cut: Cut | None
    once_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds for an image on this machine: a forward pass, and a step that trains every layer."""

    forward: float
    step: float


def costs(prepared: Prepared, skeleton: Backbone, *, num_images: int) -> tuple[Cost, ...]:
    """Return what every phase of a run takes for a number of images, train and val together."""
    speed = speed_of(prepared.recipe, skeleton, prepared.compute.device)
    return tuple(_cost(prepared, skeleton, phase, num_images, speed) for phase in prepared.phases)


def _cost(prepared: Prepared, skeleton: Backbone, phase: Phase, num_images: int, speed: Speed | None) -> Cost:
    recipe = prepared.recipe
    num_val = round(num_images * recipe.split.val)
    num_train = num_images - num_val
    batch = recipe.train.batch_size if recipe.train.batch_size != "auto" else wanted_batch(num_train)
    epochs = phase.epochs if phase.solver == "gradient" else 1
    try:
        divided = divided_or_none(skeleton, phase.plan)
        counts = operations_of(skeleton, phase.plan, divided)
        cut = cut_of(recipe, phase, num_train, num_val, divided=divided, counts=counts)
        need = need_of(prepared, phase, batch, lambda: skeleton)
        memory = need.of(batch) if need else None
    except (NotImplementedError, RuntimeError):  # a network that computes with the values of its tensors
        return Cost(batch, None, None, None)
    if speed is None:
        return Cost(batch, memory, None, cut)
    trunk = cut.trunk_share * speed.forward if cut else 0.0
    tail = speed.forward - trunk
    learn = speed.step * (counts.step - (cut.trunk_share if cut else 0.0) * counts.forward) / counts.everything
    is_solved = phase.solver == "lbfgs"
    seen = drawn_views(recipe, phase) if is_solved else cut.views if cut else 0  # of each train image, once for all
    passes = num_train * seen + num_val if seen else epochs * num_images
    seconds = passes * trunk + epochs * (num_train * (0 if is_solved else learn) + num_val * tail)
    once = seconds if is_solved else passes * trunk if seen else 0.0
    return Cost(batch, memory, seconds, cut, once)


def divided_or_none(skeleton: Backbone, plan: FreezePlan) -> Divided | None:
    """Cut a model as a run would; None if nothing can be kept."""
    try:
        return divide(skeleton.model, plan, skeleton.groups, image_size=skeleton.preprocessing.image_size)
    except IndivisibleError:
        return None


def operations_of(skeleton: Backbone, plan: FreezePlan, divided: Divided | None) -> Operations:
    """Return the operations of a model under a freeze plan, counted once on this machine and kept."""
    size, model = skeleton.preprocessing.image_size, skeleton.model
    about = {
        "what": "operations",
        "network": [*skeleton.network, str(getattr(model, "at", ""))],
        "parameters": sum(p.numel() for p in model.parameters()),
        "image_size": size,
        "plan": repr(plan),
        "versions": [torch.__version__, timm.__version__],
    }
    counts = remembered(about)
    if counts is None:
        counts = {
            "forward": 2 * multiplications(model, image_size=size),
            "step": _step_flops(skeleton, plan, size),
            "everything": _step_flops(skeleton, _trained(plan), size),
            "trunk": 2 * multiplications(divided.trunk, image_size=size) if divided else 0,
        }
        remember(about, counts)
    return Operations(*(int(counts[name] or 0) for name in ("forward", "step", "everything", "trunk")))


def cut_of(
    recipe: Recipe, phase: Phase, num_train: int, num_val: int, *, divided: Divided | None, counts: Operations
) -> Cut | None:
    """Return what cutting the model of a phase gains; None if it is not cut."""
    if divided is None:
        return None
    views = num_views(recipe, phase)
    layout = Layout(divided.shapes, recipe.cache.precision)
    epochs = phase.epochs if phase.solver == "gradient" else 1
    forward, trunk = counts.forward, counts.trunk
    is_solved = phase.solver == "lbfgs"
    learn, shown = (forward, drawn_views(recipe, phase)) if is_solved else (max(counts.step, forward), epochs)
    whole = shown * num_train * learn + epochs * num_val * forward
    saved = trunk * (shown * num_train + epochs * num_val - (num_train * views + num_val)) if views else 0
    rows = layout.row_bytes * (num_train * views + num_val)
    share = trunk / max(forward, 1)
    return Cut(divided.shapes, layout.row_bytes, share, views, rows if views else 0, max(0.0, saved / max(whole, 1)))


def _step_flops(skeleton: Backbone, plan: FreezePlan, size: tuple[int, int]) -> int:
    """Return the operations of a forward pass of one image plus the backward pass that a plan needs."""
    model = skeleton.model
    with freezing(model, plan, skeleton.groups), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model.eval()(_picture(skeleton, size)).sum())
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _picture(skeleton: Backbone, size: tuple[int, int]) -> Tensor:
    return blank_images(skeleton.model, size)


def _trained(plan: FreezePlan) -> FreezePlan:
    return FreezePlan(tuple(replace(item, trains="all") for item in plan.groups))


def speed_of(recipe: Recipe, skeleton: Backbone, device: torch.device) -> Speed | None:
    """Return the speed of the network with random weights on this machine; None for one that is too large to try.

    It is timed once and kept (see `timings`).
    """
    if sum(p.numel() for p in skeleton.model.parameters()) > LARGEST:
        return None
    size = skeleton.preprocessing.image_size
    about = {
        "what": "speed",
        "network": skeleton.network,
        "image_size": size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "fold_norms": _trains_folded(recipe, device),
        "versions": [torch.__version__, timm.__version__],
    }
    times = remembered(about)
    if times is None:
        times = _timed(recipe, size, device)
        remember(about, times)
    forward, step = times.get("forward"), times.get("step")
    return Speed(forward, step) if forward is not None and step is not None else None


def _timed(recipe: Recipe, size: tuple[int, int], device: torch.device) -> dict[str, float | None]:
    of = replace(architecture_of(recipe), pretrained=False, weights=None)
    network = backbones.load(of, num_classes=None, image_size=size[0])
    model = network.model.to(device)
    images = blank_images(model, size, count=TIMED_IMAGES)
    plan = FreezePlan(tuple(GroupPlan(group.name, "all") for group in network.groups))
    run = (folded_run(model, plan, network.groups) if _trains_folded(recipe, device) else None) or model

    def forward() -> None:
        with torch.no_grad():
            model.eval()(images)

    def step() -> None:
        torch.autograd.backward(run(images).float().sum())

    return {"forward": _seconds(forward, device), "step": _seconds(step, device)}


def _trains_folded(recipe: Recipe, device: torch.device) -> bool:
    return folds_norms(recipe, device) and recipe.strategy.norm_statistics != "updated"


def _seconds(act: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that an image takes, the best of two after a warm-up."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / TIMED_IMAGES)
    return min(taken[1:])
