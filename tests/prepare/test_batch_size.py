"""The batch finds its size once, is written into the recipe, and its parts give the step of the whole."""

from __future__ import annotations

import pytest
import torch

from finetune import recipe as recipes
from finetune.errors import ResourceError
from finetune.prepare import batch_size
from finetune.train import memory
from tests.support import last_weights

EXACT = {"augment.level": "none", "train.patience": "none"}


@pytest.mark.parametrize(("strategy", "backbone"), [("full", "test_vit"), ("top-k", "test_convnext")])
def test_accumulated_gradients_are_those_of_the_whole_batch(quick_run, strategy: str, backbone: str) -> None:
    more = {"backbone": backbone, "batch_size": 12, "epochs": 2, "overrides": EXACT, "lr": 1e-3}
    whole = quick_run(strategy, out="whole", **more)
    parts = quick_run(strategy, out="parts", micro_batch=5, **more)
    expected, found = last_weights(whole.folder), last_weights(parts.folder)
    moved = max(float((tensor - expected[name]).abs().max()) for name, tensor in found.items())
    assert 0 < moved < 1e-4


def test_what_is_accumulated_is_said_with_what_it_does_to_batch_norm(quick_run) -> None:
    said: list[str] = []
    more = {"micro_batch": 4, "batch_size": 12, "on_event": lambda event: said.append(str(event.facts.get("text")))}
    quick_run("full", overrides={"strategy.norm_statistics": "updated"}, **more)
    assert any("gradients are accumulated" in text and "batch norm" in text and "4 images" in text for text in said)
    said.clear()
    quick_run("full", out="kept", **more)
    assert any("gradients are accumulated" in text and "batch norm" not in text for text in said)


def test_little_memory_means_parts_and_stands_in_the_recipe(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda _: 40_000_000)
    result = quick_run("full", batch_size=32, image_size=96)
    size = recipes.load(result.folder / "recipe.toml").train.micro_batch
    assert 1 <= size < 32


def test_plenty_of_memory_means_the_whole_batch(quick_run) -> None:
    recipe = recipes.load(quick_run("full", batch_size=16).folder / "recipe.toml")
    assert recipe.train.micro_batch == 16


def test_too_little_memory_for_one_image_is_refused_before_anything_is_written(
    quick_run, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda _: 1000)
    with pytest.raises(ResourceError, match="one image"):
        quick_run("full", out="refused")
    assert not (tmp_path / "refused").exists()


def test_a_trial_leaves_weights_and_statistics_as_they_were(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def fitting(prepared, batch):
        before = {name: tensor.clone() for name, tensor in prepared.backbone.model.state_dict().items()}
        sizes = [batch_size._tried(prepared, phase, batch) for phase in prepared.phases]
        after = prepared.backbone.model.state_dict()
        found.append(all(torch.equal(tensor, after[name]) for name, tensor in before.items()))
        return min(sizes)

    monkeypatch.setattr(batch_size, "_fitting", fitting)
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    quick_run("full", batch_size=8)
    assert found == [True]


def test_memory_is_counted_once_and_anew_for_another_plan(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    count = batch_size.phase_memory

    def watched(skeleton, phase, *given, **more):
        counted.append(phase.name)
        return count(skeleton, phase, *given, **more)

    monkeypatch.setattr(batch_size, "phase_memory", watched)
    monkeypatch.setattr(batch_size, "free_memory", lambda _: 40_000_000)
    sizes = []
    for out in ("first", "second"):
        result = quick_run("full", out=out, batch_size=32, image_size=96)
        sizes.append(recipes.load(result.folder / "recipe.toml").train.micro_batch)
    assert len(counted) == 1 and sizes[0] == sizes[1] < 32
    quick_run("top-k", out="other", batch_size=32, image_size=96)
    assert len(counted) == 2
