"""A pretrained backbone lies in the package: it needs no network, and is plain timm under its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

import finetune
from finetune import hub
from finetune.backbone import load as loading
from finetune.backbone.load import EMBEDDED_FOLDER, architecture, load
from finetune.errors import BackboneError
from finetune.settings import EMBEDDED, EMBEDDED_FULL

MOST_BYTES = 6 * 2**20


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(loading, "_ask_hub", fail)
    monkeypatch.setattr(hub, "_status", fail)


@pytest.mark.parametrize("name", [EMBEDDED, EMBEDDED_FULL])
def test_it_loads_whole_and_asks_nobody(name: str, no_network: None) -> None:
    backbone = load(architecture(name), num_classes=3)
    assert backbone.weights is not None
    assert backbone.weights.share == 1.0
    assert backbone.weights.missing == backbone.weights.other_shape == backbone.weights.unexpected == ()
    assert backbone.weights.source == "this package"
    assert backbone.architecture.label == EMBEDDED


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED_FOLDER.iterdir()) < MOST_BYTES


def test_plain_timm_loads_the_same_network() -> None:
    plain = timm.create_model(f"local-dir:{EMBEDDED_FOLDER}", pretrained=True).eval()
    ours = load(architecture(EMBEDDED), num_classes=0).model
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain(images), ours(images))


def test_its_preprocessing_is_that_of_its_training() -> None:
    config = json.loads((EMBEDDED_FOLDER / "config.json").read_text())["pretrained_cfg"]
    found = load(architecture(EMBEDDED), num_classes=2).preprocessing
    assert found.image_size == tuple(config["input_size"][1:])
    assert (found.mean, found.std) == (tuple(config["mean"]), tuple(config["std"]))


def test_without_pretrained_it_is_the_same_network_with_random_weights() -> None:
    trained, random = (load(architecture(EMBEDDED, pretrained=flag), num_classes=2) for flag in (True, False))
    assert [group.name for group in trained.groups] == [group.name for group in random.groups]
    assert random.weights is None
    assert not torch.equal(*(b.model.state_dict()["blocks.1.0.conv_pw.weight"] for b in (trained, random)))


def test_weights_of_ones_own_beside_its_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="embedded"):
        architecture(EMBEDDED, weights=tmp_path)


def test_a_hub_out_of_reach_offers_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="cannot be reached") as caught:
        load(architecture("resnet10t.c3_in1k"), num_classes=2)
    assert "--backbone embedded" in caught.value.hint


def test_a_typo_of_it_is_understood() -> None:
    with pytest.raises(BackboneError, match="Did you mean 'embedded'"):
        architecture("embeded")


def test_a_plan_of_it_names_its_layer_groups() -> None:
    plan = finetune.plan(backbone=EMBEDDED, strategy="top-k", top_k=1)
    assert plan.phases[0].plan.trained == ("conv_head", "head")
