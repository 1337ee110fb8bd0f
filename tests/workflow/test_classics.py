"""The networks of the notes through a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.backbone.classics.googlenet import GoogLeNet


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def test_lenet_learns_from_scratch_and_goes_to_onnx(quick_run, drawn: Path) -> None:
    result = quick_run("scratch", backbone="lenet5", image_size=32, epochs=20, lr=3e-3)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < 0.9 * lines[0]["train_loss"]
    done = finetune.export(result.folder)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    model = finetune.load(result.folder, device="cpu").model
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], model(images).numpy(), atol=1e-4)
    assert len(finetune.load(result.folder).predict(drawn)) == 60


def test_a_network_that_timm_does_not_have_is_refused_as_a_timm_folder(quick_run) -> None:
    result = quick_run("scratch", backbone="lenet5", image_size=32, epochs=1)
    with pytest.raises(finetune.ExportError, match="timm itself has no network lenet5") as caught:
        finetune.export(result.folder, format="timm")
    assert "--format onnx" in caught.value.hint


def test_a_run_that_reaches_the_auxiliary_classifiers_trains_them(quick_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(top_k: int, out: str) -> dict[str, torch.Tensor]:
        return state_of(quick_run("top-k", top_k=top_k, out=out, backbone="googlenet", image_size=32, epochs=1).folder)

    below, reached = trained(3, "below"), trained(4, "reached")  # from 4e on, from 4d on
    monkeypatch.setattr(GoogLeNet, "aux_weight", 0.0)
    unheard = trained(4, "unheard")
    assert torch.equal(below["aux1.fc1.weight"], reached["aux1.fc1.weight"])
    assert not torch.equal(below["aux2.fc1.weight"], reached["aux2.fc1.weight"])
    # What the auxiliary loss says reaches the layers below it, and no frozen ones.
    changed = {name for name, tensor in reached.items() if not torch.equal(tensor, unheard[name])}
    assert "inception4d.branch1.conv.weight" in changed
    assert "inception4c.branch1.conv.weight" not in changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"), [("googlenet", 32), ("alexnet", 64), ("zfnet", 64), ("inception_v2", 32), ("resnet32", 32)]
)
def test_every_network_goes_through_a_run_and_to_onnx(quick_run, backbone: str, size: int) -> None:
    result = quick_run("scratch", backbone=backbone, image_size=size, epochs=1)
    done = finetune.export(result.folder)
    assert done.parity["is_proven"]
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits"]  # no auxiliary ones
