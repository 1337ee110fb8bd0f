"""Weights of classes of different size, against their formula and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.data.loaders import Order
from finetune.features.probe import fit_probe
from finetune.optim.class_weights import BETA, class_weights, drawing_shares, is_uneven
from tests.support import TINY


def test_the_mean_weight_of_an_image_is_one() -> None:
    counts = np.array([190, 10, 0, 55])
    weights = class_weights(counts.tolist())
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[1] > weights[3] > weights[0] and weights[2] == 1


def test_weights_are_one_over_the_effective_number() -> None:
    first, second = class_weights([100, 7])
    assert first / second == pytest.approx((1 - BETA**7) / (1 - BETA**100))
    few = class_weights([40, 4])
    assert few[1] / few[0] == pytest.approx(10, rel=0.03)  # of few images one over the count


def test_what_is_even_is_left_alone() -> None:
    assert not is_uneven([10, 29]) and is_uneven([10, 30]) and not is_uneven([5, 0]) and not is_uneven([])
    assert class_weights([8, 8]) == pytest.approx([1, 1])


def test_classes_are_drawn_by_their_weight() -> None:
    targets = np.array([0] * 95 + [1] * 5)
    order = Order(100, batch_size=10, seed=0, shares=drawing_shares(targets, 2))
    drawn = np.concatenate([[key[2] for key in batch] for order.epoch in range(50) for batch in order])
    assert len(drawn) == 5000 and 0.4 < targets[drawn].mean() < 0.55
    again = [key[2] for batch in order for key in batch]
    assert again == [key[2] for batch in order for key in batch]


def test_a_solved_head_counts_images_by_their_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator)
    targets = (features[:, 0] + torch.randn(60, generator=generator) > 1.0).long()
    weights = torch.where(targets == 1, 3.0, 1.0)
    weighted = fit_probe(features, targets, num_classes=2, weights=weights)
    plain = fit_probe(features, targets, num_classes=2)

    def share(probe: Any) -> float:
        return float((features @ probe.weight.T + probe.bias).argmax(dim=1).float().mean())

    assert share(weighted) > share(plain)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty grey images and six of a slightly brighter grey, with noise, and as many of each to test on."""
    root, rng = tmp_path_factory.mktemp("uneven") / "imgs", np.random.default_rng(0)
    for split, counts in {"train": (60, 6), "val": (20, 20)}.items():
        for name, level, count in zip(("dark", "light"), (110, 140), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(rng.normal(level, 15), 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("strategy", ["linear-probe", "head-only"])
def test_a_small_class_is_found_with_auto_and_not_without(uneven: Path, strategy: str, tmp_path: Path) -> None:
    said: list[str] = []

    def listen(event: finetune.Event) -> None:
        said.append(str(event.facts.get("text", "")))

    scores = {}
    for balance in ("auto", "weights", "sampling", "none"):
        more: dict[str, Any] = {**TINY, "strategy": strategy, "balance": balance, "epochs": 10, "on_event": listen}
        result = finetune.run(uneven, out=tmp_path / balance, **more)
        scores[balance] = result.metrics["val"]["macro_f1"]["value"]
    assert scores["auto"] == scores["weights"] > scores["none"] and scores["sampling"] > scores["none"]
    assert any("balance: a train image of light (6) counts for" in text for text in said)
    recipe = (tmp_path / "auto" / "recipe.toml").read_text()
    assert 'balance = "weights"' in recipe
