"""What only a GPU can show: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune import recipe as recipes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("strategy", ["head-only", "top-k", "full", "lp-ft"])
def test_every_precision_trains_on_cuda(drawn: Path, tmp_path: Path, strategy: str, precision: str) -> None:
    result = finetune.run(
        drawn, strategy=strategy, backbone="test_resnet", pretrained=False, image_size=64, epochs=6, device="cuda",
        out=tmp_path / "run", overrides={"train.precision": precision},
    )  # fmt: skip
    state = load_file(result.folder / "model" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_auto_takes_the_gpu_and_bfloat16(drawn: Path, tmp_path: Path) -> None:
    result = finetune.run(
        drawn,
        strategy="head-only",
        backbone="test_resnet",
        pretrained=False,
        image_size=64,
        epochs=1,
        out=tmp_path / "r",
    )
    assert recipes.load(result.folder / "recipe.toml").train.precision == "bfloat16"


def test_the_model_trained_on_cuda_predicts_the_same_on_cpu(drawn: Path, tmp_path: Path) -> None:
    result = finetune.run(
        drawn, strategy="full", backbone="test_resnet", pretrained=False, image_size=64, epochs=4, device="cuda",
        out=tmp_path / "run", overrides={"train.precision": "float32"},
    )  # fmt: skip
    there, here = (finetune.load(result.folder, device=name).predict(drawn) for name in ("cuda", "cpu"))
    assert sum(a.label == b.label for a, b in zip(there, here, strict=True)) >= len(here) - 1
