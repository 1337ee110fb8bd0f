"""The networks of the notes through a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import finetune
from finetune.backbone.classics.googlenet import GoogLeNet
from tests.support import last_weights


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
    def trained(out: str) -> dict[str, torch.Tensor]:
        return last_weights(quick_run("top-k", top_k=4, out=out, backbone="googlenet", image_size=32, epochs=1).folder)

    heard = trained("heard")  # block 4d is trained, 4a is not
    monkeypatch.setattr(GoogLeNet, "aux_weight", 0.0)
    unheard = trained("unheard")
    changed = {name for name, tensor in heard.items() if not torch.equal(tensor, unheard[name])}
    assert {"aux2.fc1.weight", "aux2.fc2.bias", "inception4d.branch1.conv.weight"} <= changed
    assert not any(name.startswith(("aux1.", "inception4c.")) for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"), [("googlenet", 32), ("alexnet", 64), ("zfnet", 64), ("inception_v2", 32), ("resnet32", 32)]
)
def test_every_network_goes_through_a_run_and_to_onnx(quick_run, backbone: str, size: int) -> None:
    result = quick_run("scratch", backbone=backbone, image_size=size, epochs=1)
    done = finetune.export(result.folder)
    assert done.proof["is_proven"]
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["logits"]  # no auxiliary ones
