"""No export without its proof."""

from __future__ import annotations

import copy
import csv
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

import finetune
from finetune.exports import onnx as onnx_export
from finetune.exports.described import Described
from finetune.exports.form import OnnxForm
from tests.support import LAYOUTS, mostly_slow

FACTS = {"classes", "preprocessing", "task", "activation"}


@pytest.mark.parametrize("backbone", mostly_slow([(name,) for name in LAYOUTS], ("test_resnet",)))
def test_onnxruntime_reproduces_the_model_at_any_batch(quick_run, backbone: str) -> None:
    done = finetune.export(quick_run(backbone=backbone, epochs=1).folder)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    model = finetune.load(done.path.parents[1], device="cpu").model
    for size in (1, 3, 11):
        images = torch.randn(size, 3, 64, 64)
        with torch.no_grad():
            ours = model(images).numpy()
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], ours, atol=1e-4)


def test_the_file_carries_classes_and_preprocessing(finished: Path, tmp_path: Path) -> None:
    done = finetune.export(finished, out=tmp_path / "model.onnx")
    facts = {item.key: json.loads(item.value) for item in onnx.load(done.path).metadata_props if item.key != "pkg"}
    assert facts["classes"] == list(finetune.load(finished).classes)
    assert facts["preprocessing"]["image_size"] == [64, 64]
    assert json.loads((tmp_path / "proof.json").read_text())["is_proven"] is True
    with pytest.raises(finetune.ResourceError, match=r"model\.onnx already exists"):
        finetune.export(finished, out=tmp_path / "model.onnx")


def test_the_file_of_either_exporter_carries_the_same(exported: Path, newer_exporter: None, tmp_path: Path) -> None:
    newer = finetune.export(exported, out=tmp_path / "model.onnx")
    facts = [
        {item.key: item.value for item in onnx.load(file).metadata_props if item.key in FACTS}
        for file in (newer.path, exported / "exports" / "model.onnx")
    ]
    assert facts[0] == facts[1] and set(facts[0]) == FACTS


def disturbed(network: torch.nn.Module, described: Described) -> tuple[torch.nn.Module, Described]:
    again = copy.deepcopy(network)
    again.get_classifier().weight.data += 0.1
    return again, described


def another_mean(network: torch.nn.Module, described: Described) -> tuple[torch.nn.Module, Described]:
    own = described.preprocessing
    return network, replace(described, preprocessing=replace(own, mean=tuple(value / 2 for value in own.mean)))


def blue_first(network: torch.nn.Module, described: Described) -> tuple[torch.nn.Module, Described]:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images.flip(1))

    return Turned().eval(), described


@pytest.mark.parametrize("wrong", [disturbed, another_mean, blue_first])
def test_an_export_that_is_wrong_is_an_error_and_leaves_no_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]
) -> None:
    write = onnx_export.write_onnx

    def write_another(model: torch.nn.Module, path: Path, described: Described, *form: OnnxForm) -> torch.nn.Module:
        return write(*_placed(wrong(model, described), path), *form)

    monkeypatch.setattr(onnx_export, "write_onnx", write_another)
    with pytest.raises(finetune.ExportError, match="does not reproduce"):
        finetune.export(finished, out=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def _placed(changed: tuple[torch.nn.Module, Described], path: Path) -> tuple[torch.nn.Module, Path, Described]:
    return changed[0], path, changed[1]


def test_an_inner_probe_goes_to_onnx_and_is_refused_as_timm(quick_run) -> None:
    result = quick_run("linear-probe", probe_at="layer2")
    assert finetune.export(result.folder).path.is_file()
    with pytest.raises(finetune.ExportError, match="inner layer group layer2"):
        finetune.export(result.folder, format="timm")


def test_the_timm_folder_loads_with_its_data_config(finished: Path, tmp_path: Path) -> None:
    done = finetune.export(finished, format="timm", out=tmp_path / "folder")
    model = timm.create_model(f"local-dir:{done.path}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 64, 64)
    assert model.num_classes == 6


def test_a_place_that_is_taken_is_not_overwritten(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(finetune.ResourceError, match="already exists"):
        finetune.export(finished, format="timm", out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_client_in_the_docs_gets_the_runs_answers(exported: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    client = tmp_path / "client.py"
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    client.write_text(next(code for code in blocks if 'how["mean"]' in code))
    rows = list(csv.DictReader((exported / "split.csv").open()))
    root = tomllib.loads((exported / "recipe.toml").read_text())["data"]["path"]
    files = [str(Path(root, row["file"])) for row in rows if row["split"] == "val"]
    command = [sys.executable, client, exported / "exports" / "model.onnx", *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    named = [line.split(" ", 1)[0] for line in said.stdout.splitlines()]
    assert named == [one.label for one in finetune.load(exported, device="cpu").predict(files)]
    assert len(named) > 5


def test_weights_beside_the_file_are_refused_rather_than_lost(finished: Path, tmp_path: Path, monkeypatch) -> None:
    def written(_: object, path: Path, *__: object) -> None:
        path.write_bytes(b"graph")
        path.with_name(f"{path.name}.data").write_bytes(b"weights")

    monkeypatch.setattr(onnx_export, "write_onnx", written)
    with pytest.raises(finetune.ExportError, match="too large for one ONNX file"):
        finetune.export(finished, out=tmp_path / "own" / "model.onnx")
    assert list(tmp_path.iterdir()) == []
