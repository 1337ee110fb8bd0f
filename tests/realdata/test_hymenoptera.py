"""Real photos and real ImageNet weights: `make realdata`. Minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune import recipe as recipes
from finetune.backbone.freeze import group_state
from finetune.device import Compute
from finetune.prepare.inputs import architecture_of, load_backbone
from finetune.strategy.strategies import STRATEGIES

SHARED = Path(__file__).parents[3] / "shared"
DATA, WEIGHTS = SHARED / "data" / "hymenoptera", SHARED / "weights"

pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not DATA.is_dir(), reason="no real data beside the checkout")]


@pytest.mark.parametrize("weights", ["deit_tiny_patch16_224", "mobilenetv2_100"])
def test_head_only_reaches_what_it_should_with_default_settings(weights: str, tmp_path: Path) -> None:
    result = finetune.run(DATA, weights=WEIGHTS / weights, strategy="head-only", out=tmp_path / "run")
    assert result.metrics["val"]["top1"]["value"] >= 0.94


@pytest.mark.parametrize("strategy", [*STRATEGIES, "auto"])
def test_the_plan_agrees_with_what_changed_and_onnx_with_the_model(strategy: str, tmp_path: Path) -> None:
    weights = WEIGHTS / "mobilenetv2_035"
    epochs = 4 if strategy == "gradual" else 2
    result = finetune.run(DATA, weights=weights, strategy=strategy, image_size=96, epochs=epochs, out=tmp_path / "run")
    plan = json.loads((result.folder / "plan.json").read_text())
    recipe = recipes.load(result.folder / "recipe.toml")
    loaded = load_backbone(recipe, architecture_of(recipe), Compute.of(recipe.train), num_classes=2)
    before, after = loaded.model.state_dict(), load_file(result.folder / "checkpoints/last/model.safetensors")
    changed = {
        group.name
        for group in loaded.groups
        if any(not torch.equal(before[k], after[k]) for k in group_state(loaded.model, loaded.groups, [group.name]))
    }
    phases = [phase["plan"]["groups"] for phase in plan["phases"]]
    assert changed == {item["group"] for items in phases for item in items if item["trains"] != "none"}
    assert finetune.export(result.folder).proof["is_proven"] is True


def test_the_embedded_backbone_beats_random_features_by_far(tmp_path: Path) -> None:
    found = {
        is_trained: finetune.run(
            DATA, backbone="embedded", strategy="linear-probe", pretrained=is_trained, out=tmp_path / str(is_trained)
        ).metrics["val"]["top1"]["value"]
        for is_trained in (True, False)
    }
    assert found[True] >= 0.74
    assert found[True] >= found[False] + 0.1
