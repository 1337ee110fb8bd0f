"""Temperature scaling against what is known, and in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import finetune
from finetune.backbone.groups import head_modules
from finetune.evaluation.temperature import Temperature, divide_logits, fit_temperature
from tests.support import TINY, network


def drawn(count: int, *, sharpness: float, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right, made sharper than they should be."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits * sharpness, targets


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_how_much_too_sharp_logits_are(sharpness: float) -> None:
    temperature = fit_temperature(*drawn(20_000, sharpness=sharpness))
    assert temperature.value == pytest.approx(sharpness, rel=0.05)
    assert temperature.is_warranted == (sharpness != 1.0)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, targets = drawn(300, sharpness=2.0)
    temperature = fit_temperature(logits, targets)
    best = float(cross_entropy(logits.double() / temperature.value, targets))
    assert all(best <= float(cross_entropy(logits.double() / t, targets)) + 1e-12 for t in (0.5, 1, 1.9, 2.1, 4))
    assert temperature.gain == pytest.approx(float(cross_entropy(logits.double(), targets)) - best)


def test_few_or_copied_images_warrant_none() -> None:
    logits, targets = drawn(99, sharpness=5.0)
    assert not fit_temperature(logits, targets).is_warranted
    copies = fit_temperature(logits.repeat(4, 1), targets.repeat(4), units=[*range(99)] * 4)
    assert copies.num_images == 396 and copies.num_independent == 99 and not copies.is_warranted
    assert Temperature(2.0, 0.1, 396, 396).is_warranted


def test_logits_that_are_always_right_have_an_end() -> None:
    temperature = fit_temperature(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert 0 < temperature.value < 0.06


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
    assert torch.equal(heads["auto"], heads[False])  # twenty val images warrant nothing
    assert runs[True].metrics["val"]["top1"] == runs[False].metrics["val"]["top1"]
    assert "logits are divided by" in (runs[True].folder / "report.html").read_text()
    judged = finetune.evaluate(runs[True].folder, split="val")
    kept = json.loads((runs[True].folder / "metrics.json").read_text())
    assert judged.metrics["ece"].value == pytest.approx(kept["val"]["ece"]["value"], abs=1e-6)
