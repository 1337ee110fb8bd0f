"""How images are made ready: the way they become squares, what pixels are standardised by, features made white."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune import recipe as recipes
from finetune.backbone.adapted import FITS
from finetune.data.statistics import least_and_span, mean_and_deviation
from finetune.data.summary import shown_shares
from finetune.errors import RecipeError
from finetune.features.probe import fit_probe
from finetune.features.scaling import rescaled, whitening
from tests.support import TINY, mostly_slow

QUICK: dict[str, Any] = {**TINY, "strategy": "head-only", "epochs": 2}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide images whose class is told by their ends alone: red or blue, around a grey middle."""
    root, rng = tmp_path_factory.mktemp("wide") / "imgs", np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (root / name).mkdir(parents=True)
        for number in range(16):
            pixels = rng.integers(90, 130, (40, 160, 3), dtype=np.uint8)
            pixels[:, :40, channel] = pixels[:, -40:, channel] = 250
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("fit", mostly_slow([(fit,) for fit in FITS], ("crop",), ("pad",)))
def test_what_stands_at_the_ends_of_wide_images_is_seen_or_not(wide: Path, tmp_path: Path, fit: str) -> None:
    run = finetune.run(wide, out=tmp_path / "run", overrides={"data.fit": fit, "augment.level": "none"},
                       **{**QUICK, "strategy": "scratch", "epochs": 15, "lr": 3e-3})  # fmt: skip
    top1 = run.metrics["val"]["top1"]["value"]
    assert top1 == 1.0 if fit != "crop" else top1 < 1.0
    config = json.loads((run.folder / "model" / "config.json").read_text())["pretrained_cfg"]
    assert config["crop_mode"] == FITS[fit]
    finetune.export(run.folder)  # proven on files, by the client that stands beside it
    files = sorted(wide.rglob("*.png"))
    said = [answer.label for answer in finetune.load(run.folder).predict(files)]
    assert said == [file.parent.name for file in files] or fit == "crop"


def test_statistics_are_those_of_numpy() -> None:
    images = torch.rand(10, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    mean, deviation = mean_and_deviation(images.split(3))
    assert mean == pytest.approx(images.numpy().mean(axis=(0, 2, 3)), abs=1e-5)
    assert deviation == pytest.approx(images.numpy().std(axis=(0, 2, 3)), abs=1e-5)
    least, span = least_and_span(images.split(4))
    assert least == pytest.approx(images.numpy().min(axis=(0, 2, 3)), abs=1e-5)
    assert np.add(least, span) == pytest.approx(images.numpy().max(axis=(0, 2, 3)), abs=1e-5)
    assert min(mean_and_deviation([torch.zeros(2, 3, 4, 4)])[1]) > 0


@pytest.mark.parametrize("kind", ["data", "min-max"])
def test_a_run_standardises_by_its_data_and_leaves_the_numbers(wide: Path, tmp_path: Path, kind: str) -> None:
    run = finetune.run(wide, out=tmp_path / "run", overrides={"data.statistics": kind}, **QUICK)
    mean, deviation = recipes.load(run.folder / "recipe.toml").data.statistics
    config = json.loads((run.folder / "model" / "config.json").read_text())["pretrained_cfg"]
    assert (tuple(config["mean"]), tuple(config["std"])) == (mean, deviation)
    assert (min(mean) > 0.4) == (kind == "data")  # the darkest pixels have 90 of 255
    again = finetune.run(recipe=run.folder / "recipe.toml", out=tmp_path / "again")
    assert again.metrics == run.metrics


@pytest.mark.parametrize(
    "value", ["dataset", [[0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5], [0, 1, 1]], [1, 2], [[True] * 3, [1] * 3]]
)
def test_statistics_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"data\.statistics"):
        recipes.load(overrides={"data.statistics": value})


def test_numbers_survive_the_recipe() -> None:
    named = [[0.5, 0.4, 0.3], [0.2, 0.2, 0.2]]
    recipe = recipes.load(overrides={"data.statistics": named})
    assert recipes.loads(recipes.dump(recipe), source="recipe").data.statistics == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def correlated(count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 3


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_white_features_have_no_part_in_each_other(kind: str) -> None:
    scaled, _, _ = rescaled(correlated())
    white = scaled @ whitening(scaled, kind, epsilon=1e-9)
    assert torch.allclose(white.T @ white / len(white), torch.eye(8), atol=1e-3)
    zca = whitening(scaled, "zca", epsilon=1e-9)
    assert torch.allclose(zca, zca.T, atol=1e-4)  # the one that turns nothing


def test_a_direction_without_variance_is_not_blown_up() -> None:
    features = torch.cat([correlated(), correlated()[:, :1]], dim=1)
    scaled, _, _ = rescaled(features)
    assert float((scaled @ whitening(scaled, "pca", epsilon=0.01)).abs().max()) < 40


def test_a_head_solved_on_white_features_takes_raw_ones() -> None:
    features = correlated()
    targets = (features[:, 0] + features[:, 1] > 6).long()
    logits = {
        kind: features @ probe.weight.T + probe.bias
        for kind in ("pca", "zca", "none")
        if (probe := fit_probe(features, targets, num_classes=2, whiten=kind))
    }
    assert torch.allclose(logits["pca"], logits["zca"], atol=2e-2)  # turned alike, solved alike
    assert not torch.allclose(logits["pca"], logits["none"], atol=0.1)
    assert float((logits["pca"].argmax(dim=1) == targets).float().mean()) > 0.95


def test_what_has_no_use_for_white_features_refuses_them() -> None:
    with pytest.raises(RecipeError, match=r"strategy\.whiten has no meaning"):
        finetune.plan(
            backbone="test_resnet", pretrained=False, strategy="head-only", overrides={"strategy.whiten": "pca"}
        )


def test_the_share_that_a_view_shows() -> None:
    looks = np.array([(100, 100), (200, 100), (100, 400)], dtype=[("width", int), ("height", int)])
    assert shown_shares(looks, crop_pct=1.0, crop_mode="center") == (0.5, 0.25)  # type: ignore[arg-type]
    assert shown_shares(looks, crop_pct=0.5, crop_mode="center") == (0.125, 0.0625)  # type: ignore[arg-type]
    assert shown_shares(looks, crop_pct=0.9, crop_mode="border") == (1.0, 1.0)  # type: ignore[arg-type]


def test_check_says_how_much_of_images_is_seen(wide: Path) -> None:
    settings = {**TINY, "backbone": "embedded", "pretrained": True}
    shown = finetune.check(wide, **settings).pictures.shown
    assert shown is not None and shown[0] == shown[1] == 0.25
    whole = finetune.check(wide, overrides={"data.fit": "pad"}, **settings).pictures.shown
    assert whole == (1.0, 1.0)
