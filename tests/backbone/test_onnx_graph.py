"""A network as an ONNX graph: by which exporter, and that a trace keeps nothing of its example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from finetune.backbone import onnx_graph


class Plain(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class OfTwo(nn.Module):
    """Divides by the number of images as a constant of the example."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) / float(len(images))


class Pairs(nn.Module):
    """Puts images into a shape that is a constant of the example."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).reshape(int(images.shape[0]), -1)[:, :3]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The exporters that were asked, in order."""
    names: list[str] = []

    def told(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: names.append(name) or ask(*args, **kwargs)

    for name in ("_write_older", "_program"):
        monkeypatch.setattr(onnx_graph, name, told(name, getattr(onnx_graph, name)))
    return names


def written(network: nn.Module, file: Path, *, sides: tuple[int, ...] = ()) -> onnxruntime.InferenceSession:
    example = torch.zeros(2, 3, 8, 8)
    onnx_graph.write_graph(
        network.eval(), example, file, input_name="images", outputs=["logits"], metadata={"classes": "[]"}, sides=sides
    )
    assert {item.key: item.value for item in onnx.load(file).metadata_props}["classes"] == "[]"
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_a_trace_that_keeps_the_number_of_images_is_not_taken(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = onnx_graph._write_older
    monkeypatch.setattr(onnx_graph, "_write_older", lambda *parts: trace(*parts[:-1], {}))
    session = written(Plain(), tmp_path / "model.onnx")
    for size in (1, 2, 5):
        images = torch.rand(size, 3, 8, 8)
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], Plain()(images).numpy(), atol=1e-6)
    assert asked == ["_write_older", "_program"]


@pytest.mark.parametrize("network", [OfTwo(), Pairs()])
def test_a_network_that_keeps_the_number_of_images_under_both_is_refused(
    network: nn.Module, asked: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"another batch|cannot run"):
        written(network, tmp_path / "model.onnx")
    assert asked == ["_write_older", "_program"]


def test_the_quicker_exporter_is_enough_for_most(asked: list[str], tmp_path: Path) -> None:
    written(Plain(), tmp_path / "model.onnx")
    assert asked == ["_write_older"]


def test_of_free_sides_nothing_is_traced(asked: list[str], tmp_path: Path) -> None:
    session = written(Plain(), tmp_path / "model.onnx", sides=(2, 3))
    assert session.run(None, {"images": np.ones((3, 3, 12, 16), dtype=np.float32)})[0].shape == (3, 3)
    assert asked == ["_program"]


def test_what_no_exporter_knows_is_said_by_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_write_older", "_program"):
        monkeypatch.setattr(onnx_graph, name, lambda *_, name=name: (_ for _ in ()).throw(ValueError(name)))
    with pytest.raises(ValueError, match="_program"):
        written(Plain(), tmp_path / "model.onnx")
