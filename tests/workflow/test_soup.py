"""Weights of several runs averaged: what is in the model, that it is a run folder, and who may be in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import finetune
from finetune.checkpoint.soups import mean_state
from tests.support import TINY

MORE = {**TINY, "strategy": "full", "epochs": 2, "test": 0.25}


@pytest.fixture(scope="module")
def rates(few: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs from one start, at other learning rates, the last of which learns nothing."""
    place = tmp_path_factory.mktemp("rates")
    return [finetune.run(few, out=place / f"{lr:g}", lr=lr, **MORE).folder for lr in (0.003, 0.002, 1e-9)]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_a_soup_is_the_mean_of_the_weights_and_a_run_folder(rates: list[Path], tmp_path: Path) -> None:
    found = finetune.soup(rates, out=tmp_path / "soup", device="cpu")
    own, parts = weights(tmp_path / "soup"), [weights(run) for run in rates]
    for key, tensor in own.items():
        expected = torch.stack([part[key].double() for part in parts]).mean(dim=0)
        assert torch.allclose(tensor.double(), expected, atol=1e-7), key
    again = finetune.evaluate(tmp_path / "soup", split="test", device="cpu")
    assert again.metrics == found.joined.metrics["test"]
    said = json.loads((tmp_path / "soup" / "metrics.json").read_text())
    assert said["test"]["top1"]["value"] == again.metrics["top1"].value
    assert finetune.export(tmp_path / "soup").proof["is_proven"] is True
    assert len(finetune.load(tmp_path / "soup", device="cpu").classes) == 6
    with pytest.raises(finetune.CheckpointError, match="is finished"):
        finetune.resume(tmp_path / "soup")
    again_soup = finetune.soup([tmp_path / "soup", rates[0]], device="cpu")
    assert again_soup.folder is None


def test_a_greedy_soup_is_never_worse_on_val_than_the_best_run(rates: list[Path], tmp_path: Path) -> None:
    found = finetune.soup(rates, greedy=True, out=tmp_path / "soup", device="cpu").joined
    best = next(member for member in found.members if member.run == found.best)
    assert best.count == 1
    assert found.metrics["val"]["top1"].value >= best.metrics["val"]["top1"].value
    taken = [weights(member.run) for member in found.members if member.count]
    assert all(torch.equal(tensor, weights(tmp_path / "soup")[key]) for key, tensor in mean_state(taken).items())


def test_what_runs_have_alike_is_copied_bit_for_bit_and_counts_come_from_the_first() -> None:
    third = torch.tensor([0.1, 0.7, 1 / 3])
    states = [{"frozen": third, "own": torch.tensor([float(n)]), "seen": torch.tensor(7 + n)} for n in range(3)]
    found = mean_state(states)
    assert torch.equal(found["frozen"], third) and found["frozen"] is not third
    assert found["own"].item() == 1.0 and found["seen"].item() == 7


def test_runs_without_one_start_are_refused_with_the_reason(rates: list[Path], few: Path, tmp_path: Path) -> None:
    other = finetune.run(few, out=tmp_path / "other", **MORE, seed=1).folder  # random weights of another seed
    with pytest.raises(finetune.CheckpointError, match="began from different backbone weights") as refused:
        finetune.soup([rates[0], other])
    assert "finetune ensemble" in refused.value.hint
    network = finetune.run(few, out=tmp_path / "network", **{**MORE, "backbone": "test_resnet"}).folder
    with pytest.raises(finetune.CheckpointError, match="one is a lenet5, the other a test_resnet"):
        finetune.soup([rates[0], network])


def test_layers_that_were_drawn_otherwise_are_no_common_start_and_heads_are_told(few: Path, tmp_path: Path) -> None:
    base = {"backbone": "embedded", "image_size": 32, "device": "cpu", "workers": 0, "batch_size": 8, "epochs": 1}
    top = {**base, "strategy": "top-k", "top_k": 1, "test": 0.25}
    runs = [finetune.run(few, out=tmp_path / f"r{seed}", seed=seed, reinit=True, **top).folder for seed in (0, 1)]
    with pytest.raises(finetune.CheckpointError, match="layers were re-initialised, and drawn differently"):
        finetune.soup(runs)
    kept = [finetune.run(few, out=tmp_path / f"k{seed}", seed=seed, **top).folder for seed in (0, 1)]
    told: list[str] = []
    finetune.soup(kept, device="cpu", on_event=lambda event: told.append(str(event.facts.get("text"))))
    assert any("heads started differently" in text for text in told)
