"""Pools of feature maps, against their definitions, cut and exported; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import fractional_max_pool2d

import finetune
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.backbone.load import Backbone, architecture, load
from finetune.backbone.pools import OURS, FractionalMax, GeneralisedMean, starts
from finetune.errors import BackboneError, ExportError, RecipeError
from finetune.features.divide import agrees, divide
from finetune.randomness import derive, forked
from finetune.strategy.strategies import Choice, phases
from tests.support import QUICK, mostly_slow

PLAIN = {"is_channels_last": False, "keeps_dims": False}


def pooled(name: str, pool: str, **more: Any) -> Backbone:
    return load(replace(architecture(name, pretrained=False), pool=pool), num_classes=5, **more)


def test_a_generalised_mean_is_its_formula_between_the_mean_and_the_maximum() -> None:
    pool, maps = GeneralisedMean(**PLAIN), torch.rand(2, 4, 5, 6) + 0.1
    assert torch.allclose(pool(maps), maps.pow(3).mean(dim=(2, 3)).pow(1 / 3))
    with torch.no_grad():
        pool.p.fill_(1.0)
        assert torch.allclose(pool(maps), maps.mean(dim=(2, 3)))
        pool.p.fill_(200.0)
        assert torch.allclose(pool(maps), maps.amax(dim=(2, 3)), rtol=0.05)
    assert torch.isfinite(pool(torch.zeros(1, 1, 2, 2))).all()


@pytest.mark.parametrize("size", [(5, 6), (8, 5), (7, 7), (12, 9)])
def test_fixed_regions_are_one_draw_of_torch(size: tuple[int, int]) -> None:
    pool, maps = FractionalMax(size, seed=3, **PLAIN).eval(), torch.randn(2, 4, *size)
    with forked(derive(3, "pool")):
        samples = torch.rand(2).expand(2, 4, 2)
    regions = fractional_max_pool2d(maps, 2, output_size=pool.size, _random_samples=samples)
    assert torch.equal(pool(maps), regions.mean(dim=(2, 3)))
    assert torch.equal(pool(maps), pool(maps))


def test_regions_lie_in_the_map_cover_both_ends_and_are_drawn_in_training() -> None:
    for side in range(5, 40):
        first, *_, last = places = starts(side, 0.7)
        assert first == 0 and last == side - 2 and places == sorted(set(places))
        assert all(later - place <= 2 for place, later in pairwise(places))
    pool, maps = FractionalMax((7, 7), seed=0, **PLAIN).train(), torch.randn(2, 4, 7, 7)
    assert not torch.equal(pool(maps), pool(maps))


@pytest.mark.parametrize("pool_class", [GeneralisedMean, partial(FractionalMax, (5, 6), seed=0)])
def test_channels_last_maps_give_the_same(pool_class: Callable[..., nn.Module]) -> None:
    maps = torch.rand(2, 3, 5, 6)
    for keeps in (False, True):
        plain = pool_class(is_channels_last=False, keeps_dims=keeps).eval()(maps)
        last = pool_class(is_channels_last=True, keeps_dims=keeps).eval()(maps.permute(0, 2, 3, 1))
        assert torch.equal(plain, last.permute(0, 3, 1, 2) if keeps else last)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("pool", ["avg", *OURS])
def test_a_network_is_cut_before_a_pool_that_is_trained_or_drawn(name: str, pool: str) -> None:
    backbone = pooled(name, pool, image_size=160)
    model, groups, size = backbone.model, backbone.groups, (160, 160)
    assert groups == layer_groups(model)
    plan = phases(Choice("head-only", epochs=1, lr=1e-3, layer_decay=1.0), groups)[0].plan
    with freezing(model, plan, groups) as hold:
        divided = divide(model, plan, groups, image_size=size)
        hold(divided.tail)
        assert agrees(model, divided, torch.randn(4, 3, *size), fork=partial(forked, 3))
        assert len(divided.shapes[0]) == (3 if pool in OURS else 1)
        model.train()
        first, second = model(torch.ones(4, 3, *size)), model(torch.ones(4, 3, *size))
        images = torch.randn(4, 3, *size)
        assert torch.equal(model(images), model(images)) is (pool != "fractional")
        assert torch.isfinite(first).all() and torch.isfinite(second).all()


PAIRS = list(product(["test_resnet", "test_convnext"], OURS))


@pytest.mark.parametrize(("backbone", "pool"), mostly_slow(PAIRS, ("test_resnet", "gem")))
def test_a_run_is_exported_evaluated_and_gone_on_with(
    quick_run: Callable[..., finetune.RunResult], drawn: Path, tmp_path: Path, backbone: str, pool: str
) -> None:
    more = {"image_size": 160, "overrides": {"backbone.pool": pool, "optim.lr": 0.05}}
    run = quick_run(backbone=backbone, **more)
    assert finetune.export(run.folder).proof["is_proven"] is True
    with pytest.raises(ExportError, match=pool):
        finetune.export(run.folder, format="timm")
    judged = finetune.evaluate(run.folder, split="val").metrics["top1"].value
    assert judged == run.metrics["val"]["top1"]["value"]
    assert json.loads((run.folder / "model" / "config.json").read_text())["pool"] == pool
    again = load(architecture("auto", weights=run.folder / "model"), num_classes=6, image_size=160)
    saved = finetune.load(run.folder, device="cpu").model
    own = {key: tensor for key, tensor in again.model.state_dict().items() if "pool" in key}
    assert own and all(torch.equal(tensor, saved.state_dict()[key]) for key, tensor in own.items())
    assert not again.weights.unexpected
    if pool == "gem":
        assert float(next(iter(own.values()))) != 3.0  # it was trained


def test_another_seed_draws_other_regions() -> None:
    regions = [pooled("test_resnet", "fractional", seed=seed).model.global_pool.extra_repr() for seed in range(8)]
    assert len(set(regions)) > 1


def test_a_pool_of_timm_is_a_plain_network_of_timm(
    quick_run: Callable[..., finetune.RunResult], tmp_path: Path
) -> None:
    run = quick_run(overrides={"backbone.pool": "catavgmax"}, image_size=96)
    assert finetune.export(run.folder, format="timm", out=tmp_path / "timm").proof["largest_difference"] == 0
    assert finetune.export(run.folder).proof["is_proven"] is True


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "test_vit", "overrides": {"backbone.pool": "gem"}}, BackboneError, "does not pool feature maps"),
        ({"backbone": "lenet5", "overrides": {"backbone.pool": "max"}}, BackboneError, "does not pool feature maps"),
        ({"image_size": 32, "overrides": {"backbone.pool": "gem"}}, BackboneError, "1 x 1 positions"),
        ({"image_size": 128, "overrides": {"backbone.pool": "fractional"}}, BackboneError, "4 x 4 positions"),
        (
            {"overrides": {"backbone.pool": "max", "backbone.model_args": {"global_pool": "avg"}}},
            RecipeError,
            "both name the pool",
        ),
        ({"overrides": {"backbone.pool": "median"}}, RecipeError, "backbone.pool"),
        ({"strategy": "linear-probe", "overrides": {"regularise.drop_connect": 0.5}}, RecipeError, "takes no steps"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        finetune.plan(**{"backbone": "test_resnet", "strategy": "head-only", "pretrained": False, **settings})


def test_a_probe_at_an_inner_layer_group_says_that_it_has_no_pool(drawn: Path, tmp_path: Path) -> None:
    overrides = {"backbone.pool": "gem"}
    settings: dict[str, Any] = {**QUICK, "image_size": 96, "backbone": "test_resnet", "overrides": overrides}
    planned = finetune.plan(strategy="linear-probe", probe_at="layer2", backbone="test_resnet", pretrained=False,
                            image_size=96, overrides=overrides)  # fmt: skip
    assert any("whatever backbone.pool says" in note for note in planned.notes)
    run = finetune.run(drawn, strategy="linear-probe", probe_at="all", out=tmp_path / "run", **settings)
    assert finetune.export(run.folder).proof["is_proven"] is True
