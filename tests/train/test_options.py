"""Every value of every option of training: two epochs that learn, and the same bits when they were stopped between.

`EVERY` is held complete by `test_no_option_is_left_out`. Of each key the first value is tried on one network; all
values on both are slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest

from finetune import recipe as recipes
from finetune import settings, values
from finetune.errors import BackboneError
from finetune.optim.optimisers import OPTIMISERS
from tests.support import mostly_slow
from tests.train.fitting import assert_resumes_to_the_same_bits, network

PLATEAU = {"optim.schedule": "plateau", "optim.drop_patience": 1, "optim.drop": 0.5, "optim.warmup": 0.0}
CLIMBING = {"optim.name": "momentum", "optim.momentum": 0.99, "optim.momentum_from": 0.5}
EVERY: list[dict[str, Any]] = [
    *({"optim.name": name} for name in get_args(values.OptimiserName)),
    *({"optim.schedule": name} for name in get_args(values.Schedule)),
    *({"loss.name": name} for name in ("auto", *values.TASK_LOSSES["classify"])),
    PLATEAU,
    CLIMBING,
    {"optim.momentum_from": 0.5},
    {"optim.warmup": "2 steps"},
    {"optim.warmup": "1 epoch"},
    {"optim.clip": "none"},
    {"optim.sam": 0.05},
    {"optim.sam": 0.05, "regularise.mixup": 0.2, "train.micro_batch": 2, "strategy.norm_statistics": "updated"},
    {"optim.head_lr": 5.0},
    {"optim.schedule": "step", "optim.drop_every": 0.2, "optim.drop": 0.5},
    {"optim.schedule": "polynomial", "optim.power": 2.0},
    {"loss.label_smoothing": 0.1},
    {"loss.name": "focal", "loss.focal_gamma": 1.0},
    *({"strategy.initialiser": name} for name in get_args(values.Initialiser)),
    {"augment.features": 0.5},
    {"regularise.mixup": 0.2},
    {"regularise.cutmix": 1.0},
    {"regularise.mixup": 0.2, "regularise.cutmix": 1.0, "train.micro_batch": 2},
    {"regularise.l1": 1e-5},
    {"regularise.l2_sp": 0.01},
    {"regularise.ema": 0.5},
    {"regularise.ema": 0.5, "optim.name": "lamb"},
    {"regularise.drop_connect": 0.5},
    {"regularise.drop_connect": 0.2, "optim.sam": 0.05, "regularise.mixup": 0.2},
]
POOLS = get_args(get_args(settings.BackboneSection.model_fields["pool"].annotation)[-1])
STRATEGY = {"test_resnet": "top-k", "test_vit": "full"}


def name_of(overrides: dict[str, Any]) -> str:
    return ",".join(f"{key.partition('.')[2]}={value}" for key, value in overrides.items())


def rate(overrides: dict[str, Any]) -> float:
    return 1e-3 * OPTIMISERS[overrides.get("optim.name", "adamw")].lr_factor


def cases() -> Iterator[Any]:
    """Every value on every network; what is quick takes the networks in turn."""
    tried: list[tuple[str, ...]] = []
    for overrides in EVERY:
        is_new = tuple(overrides) not in tried
        tried.append(tuple(overrides))
        for number, name in enumerate(STRATEGY):
            is_quick = is_new and number == len(set(tried)) % len(STRATEGY)
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(overrides, name, marks=marks, id=f"{name_of(overrides)}-{name}")


@pytest.mark.parametrize(("overrides", "name"), list(cases()))
def test_it_learns_and_resumes_to_the_same_bits(overrides: dict[str, Any], name: str) -> None:
    whole = assert_resumes_to_the_same_bits(STRATEGY[name], name, overrides, lr=rate(overrides))
    losses = [line.train_loss for line in whole.history]
    assert losses[1] < losses[0]  # type: ignore[operator]


WITH_POOLS = list(product(POOLS, ["head-only", "top-k"], ["test_resnet", "test_convnext"]))
OF_OURS = (("gem", "top-k", "test_resnet"), ("fractional", "head-only", "test_convnext"))


@pytest.mark.parametrize(
    ("pool", "strategy", "name"),
    mostly_slow(WITH_POOLS, *OF_OURS, ("catavgmax", "top-k", "test_resnet"), ("catavgmax", "top-k", "test_convnext")),
)
def test_every_pool_learns_and_resumes_to_the_same_bits(pool: str, strategy: str, name: str) -> None:
    if (name, pool) == ("test_convnext", "catavgmax"):
        with pytest.raises(BackboneError, match="pooled width"):
            network(name, pool=pool)
        return
    whole = assert_resumes_to_the_same_bits(strategy, name, {"backbone.pool": pool}, lr=1e-2)
    losses = [line.train_loss for line in whole.history]
    assert losses[1] < losses[0]  # type: ignore[operator]


def test_no_option_is_left_out() -> None:
    settled = {"optim.lr", "optim.weight_decay", "optim.layer_decay"}  # by every strategy
    built = {"regularise.dropout", "regularise.drop_path"}  # into the network: below
    keys = {key for key in recipes.fields() if key.startswith(("optim.", "loss.", "regularise."))} - settled - built
    assert keys <= {key for overrides in EVERY for key in overrides}
