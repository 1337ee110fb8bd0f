"""Temperature scaling against what is known, and in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import finetune
from finetune.backbone.groups import head_modules
from finetune.evaluation.temperature import USUAL, Usual, divide_logits, fit_temperature
from finetune.prepare.asked import recipe_of
from finetune.prepare.prepared import prepare
from finetune.runs.calibrate import training_of
from tests.support import TINY, network


def drawn(count: int, *, sharpness: float, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right, made sharper than they should be."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits * sharpness, targets


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("usual", USUAL.values())
def test_many_images_undo_how_much_too_sharp_logits_are_whatever_is_usual(sharpness: float, usual: Usual) -> None:
    temperature = fit_temperature(*drawn(20_000, sharpness=sharpness), usual=usual)
    assert temperature.value == pytest.approx(sharpness, rel=0.05)


def test_no_other_temperature_is_likelier() -> None:
    logits, targets = drawn(300, sharpness=2.0)
    usual = Usual(3.0, 0.5)
    temperature = fit_temperature(logits, targets, usual=usual)

    def unlikely(value: float) -> float:
        of_images = 300 * float(cross_entropy(logits.double() / value, targets))
        return of_images + (math.log(value / usual.median) / usual.spread) ** 2 / 2

    best = unlikely(temperature.value)
    assert all(best <= unlikely(value) + 1e-9 for value in (0.5, 1, 1.9, 2.0, 2.1, 3, 4))
    after = float(cross_entropy(logits.double() / temperature.value, targets))
    assert temperature.gain == pytest.approx(float(cross_entropy(logits.double(), targets)) - after)


def test_the_fewer_images_the_nearer_to_what_is_usual_and_copies_are_one_image() -> None:
    usual = Usual(1.0, 0.3)
    found = [fit_temperature(*drawn(count, sharpness=5.0), usual=usual).value for count in (10, 100, 1000)]
    assert 1 < found[0] < found[1] < found[2]
    logits, targets = drawn(10, sharpness=5.0)
    copies = fit_temperature(logits.repeat(40, 1), targets.repeat(40), usual=usual, units=[*range(10)] * 40)
    assert copies.value == pytest.approx(found[0]) and (copies.num_images, copies.num_independent) == (400, 10)


def test_logits_that_are_always_right_stay_near_what_is_usual() -> None:
    logits, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert 0.7 < fit_temperature(logits, targets, usual=Usual(1.0, 0.3)).value < 1
    assert 0.05 <= fit_temperature(logits, targets, usual=Usual(1.0, 1e6)).value < 0.06  # there is an end


@pytest.mark.parametrize(
    ("strategy", "more", "training"),
    [
        ("linear-probe", {}, "solved"), ("head-only", {}, "head"), ("top-k", {}, "deep"),
        ("full", {}, "deep"), ("lp-ft", {}, "deep"), ("scratch", {}, "other"),
        ("top-k", {"strategy.top_k": 2}, "smoothed"), ("full", {"loss.label_smoothing": 0.1}, "smoothed"),
        ("head-only", {"loss.label_smoothing": 0.1}, "other"),
        ("head-only", {"loss.name": "focal"}, "other"), ("full", {"regularise.mixup": 0.2}, "other"),
    ],
)  # fmt: skip
def test_what_is_usual_follows_from_how_a_run_trains(few: Path, strategy: str, more: dict[str, Any], training) -> None:
    keys = {
        "data.path": str(few), "backbone.name": "test_resnet", "backbone.pretrained": False, "train.device": "cpu",
        "strategy.name": strategy, "backbone.image_size": 32, "train.workers": 0,
    }  # fmt: skip
    assert training_of(prepare(recipe_of(overrides={**keys, **more}))) == training


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_head_yields_divided_logits(name: str) -> None:
    model, images = network(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        divide_logits(head_modules(model), 2.5)
        assert torch.allclose(model(images), before / 2.5, atol=1e-6)


def test_a_run_is_calibrated_and_answers_alike(image_folder: Any, tmp_path: Path) -> None:
    data = image_folder(per_class=20)
    more: dict[str, Any] = {**TINY, "strategy": "scratch", "epochs": 2, "val": 0.5}
    runs = {key: finetune.run(data, out=tmp_path / str(key), calibrate=key, **more) for key in (True, False, "auto")}
    heads = {key: load_file(run.folder / "model" / "model.safetensors")["softmax.weight"] for key, run in runs.items()}
    ratio = heads[False] / heads[True]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4) and not torch.equal(
        heads[True], heads[False]
    )
    assert torch.equal(heads["auto"], heads[True])
    assert runs[True].metrics["val"]["top1"] == runs[False].metrics["val"]["top1"]
    assert "logits are divided by" in (runs[True].folder / "report.html").read_text()
    judged = finetune.evaluate(runs[True].folder, split="val")
    kept = json.loads((runs[True].folder / "metrics.json").read_text())
    assert judged.metrics["ece"].value == pytest.approx(kept["val"]["ece"]["value"], abs=1e-6)
