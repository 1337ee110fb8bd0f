"""The run as a whole: what is frozen stays, what is planned happens, what is left is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import finetune
from finetune import recipe as recipes
from finetune.backbone.freeze import group_state
from finetune.data.sample import write_sample
from finetune.device import Compute
from finetune.prepare.inputs import architecture_of, load_backbone
from finetune.strategy.strategies import STRATEGIES

LAYOUTS = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
CASES = [(name, "test_resnet") for name in STRATEGIES] + [("top-k", name) for name in LAYOUTS[1:]]


def changed_groups(folder: Path) -> dict[str, bool]:
    """Tell for every layer group of a run whether any parameter or buffer differs from what was loaded."""
    recipe = recipes.load(folder / "recipe.toml")
    plan = json.loads((folder / "plan.json").read_text())
    loaded = load_backbone(recipe, architecture_of(recipe), Compute.of(recipe.train), num_classes=len(plan["classes"]))
    before, after = loaded.model.state_dict(), load_file(folder / "checkpoints" / "last" / "model.safetensors")
    return {
        group.name: any(
            not torch.equal(before[key], after[key]) for key in group_state(loaded.model, loaded.groups, [group.name])
        )
        for group in loaded.groups
    }


@pytest.mark.parametrize(("strategy", "backbone"), CASES)
def test_exactly_the_planned_groups_change(quick_run, strategy: str, backbone: str) -> None:
    epochs = 4 if strategy == "gradual" else 2
    result = quick_run(strategy, backbone=backbone, epochs=epochs, image_size=32)
    plan = json.loads((result.folder / "plan.json").read_text())
    trained = {
        item["group"] for phase in plan["phases"] for item in phase["plan"]["groups"] if item["trains"] != "none"
    }
    changed = {name for name, has_changed in changed_groups(result.folder).items() if has_changed}
    # A new resnet's residual branches begin at zero, by norms that lora keeps: layer1, which is nothing else, stays.
    assert changed == trained - ({"layer1"} if (strategy, backbone) == ("lora", "test_resnet") else set())


def test_the_saved_model_loads_in_timm_and_scores_what_the_run_says(quick_run) -> None:
    result = quick_run("full", calibrate=False)
    model = timm.create_model(f"local-dir:{result.folder / 'model'}", pretrained=True).eval()
    best = load_file(result.folder / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(tensor, best[key]) for key, tensor in model.state_dict().items())
    assert finetune.evaluate(result.folder).metrics["top1"].value == result.metrics["val"]["top1"]["value"]


def test_the_run_folder_holds_what_design_says(finished: Path) -> None:
    files = "recipe.toml split.csv plan.json problems.csv metrics.jsonl metrics.json report.html timing.json"
    assert all((finished / name).is_file() for name in [*files.split(), "environment.json", "model/config.json"])
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"val", "test"}
    assert metrics["val"]["top1"]["low"] <= metrics["val"]["top1"]["value"] <= metrics["val"]["top1"]["high"]


def test_what_takes_a_while_after_the_last_step_is_told_too(quick_run) -> None:
    tasks: dict[str, list[tuple[int, int | None]]] = {}

    def note(event: finetune.Event) -> None:
        if event.kind == "progress":
            tasks.setdefault(event.facts["task"], []).append((event.facts["done"], event.facts["total"]))

    quick_run("full", on_event=note, overrides={"split.test": 0.2, "export.onnx_at_end": True})
    assert tasks["measure on val"][-1] == (12, 12) and len(tasks["measure on test"]) >= 1
    assert tasks["report"] == tasks["export to model.onnx"] == [(0, None), (1, 1)]


def test_the_same_recipe_gives_the_same_bits(quick_run, tmp_path: Path) -> None:
    first = quick_run("top-k", out="first")
    torch.rand(7)  # whoever draws meanwhile changes nothing
    again = finetune.run(recipe=first.folder / "recipe.toml", out=tmp_path / "again", workers=2)
    for name in ("model/model.safetensors", "metrics.jsonl", "metrics.json", "split.csv"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_another_seed_gives_other_weights(quick_run) -> None:
    one, two = quick_run(out="one"), quick_run(out="two", seed=1)
    weights = "model/model.safetensors"
    assert (one.folder / weights).read_bytes() != (two.folder / weights).read_bytes()


def test_a_probe_at_an_inner_group_saves_loads_and_predicts(quick_run, drawn: Path) -> None:
    result = quick_run("linear-probe", probe_at="layer2")
    state = load_file(result.folder / "model" / "model.safetensors")
    assert not [key for key in state if "layer3" in key]
    predictions = finetune.load(result.folder, device="cpu").predict(drawn / "striped-disc")
    assert {prediction.label for prediction in predictions} <= set(finetune.load(result.folder).classes)


def test_scratch_learns_the_drawn_set(drawn: Path, tmp_path: Path, quick_run) -> None:
    result = quick_run("scratch", epochs=12, val=0.5)
    history = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]


def test_top_k_zero_is_head_only(quick_run) -> None:
    head, top = quick_run("head-only", out="head"), quick_run("top-k", out="top", top_k=0, lr=1e-3)
    assert head.strategy == "head-only"
    changed = changed_groups(top.folder)
    assert [name for name, is_changed in changed.items() if is_changed] == ["head"]


def test_auto_measures_decides_and_says_why(quick_run) -> None:
    result = quick_run("auto", pretrained=False)
    content = json.loads((result.folder / "evidence.json").read_text())
    assert content["verdict"]["strategy"] == result.strategy
    assert set(content["evidence"]["probe"]) == {"stem", "layer1", "layer2", "layer3", "layer4"}
    assert "48 images, 6 classes" in content["verdict"]["reason"]
    recipe = recipes.load(result.folder / "recipe.toml")
    assert content["verdict"]["numbers"]["epochs"] == recipe.train.epochs
    assert content["verdict"]["numbers"]["lr"] == recipe.optim.lr


def test_reinit_gives_new_values_to_what_is_retrained_only(quick_run) -> None:
    result = quick_run("top-k", reinit=True, epochs=1)
    changed = changed_groups(result.folder)
    assert changed == {"stem": False, "layer1": False, "layer2": False, "layer3": False, "layer4": True, "head": True}


def test_a_loss_that_is_not_finite_stops_at_its_step(quick_run) -> None:
    with pytest.raises(finetune.TrainingError, match="phase full, epoch 1, step"):
        quick_run("full", lr=1e30, overrides={"optim.clip": "none", "optim.name": "nesterov", "optim.warmup": 0.0})


def test_the_embedded_backbone_brings_more_than_random_weights(tmp_path: Path) -> None:
    write_sample(tmp_path / "imgs", per_class=14)
    top1 = [
        finetune.run(
            tmp_path / "imgs", strategy="linear-probe", backbone="embedded", pretrained=flag, image_size=96, val=0.5,
            workers=0, device="cpu", out=tmp_path / str(flag),
        ).metrics["val"]["top1"]["value"]
        for flag in (True, False)
    ]  # fmt: skip
    assert top1[0] > top1[1] + 0.1


def test_a_run_of_the_embedded_backbone_is_repeated_by_its_recipe_and_names_no_place(quick_run, tmp_path: Path) -> None:
    first = quick_run("head-only", backbone="embedded", pretrained=True)
    text = (first.folder / "recipe.toml").read_text()
    assert 'name = "embedded"' in text
    assert 'weights = "none"' in text
    again = finetune.run(recipe=first.folder / "recipe.toml", out=tmp_path / "again")
    assert again.metrics == first.metrics
