"""The short list names what timm has weights of; only what is on this machine is proposed."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm.models import get_pretrained_cfg, is_model_pretrained

from finetune.backbone import shortlist
from finetune.backbone.catalogue import find
from finetune.backbone.shortlist import SHORTLIST, on_this_machine, standing
from finetune.settings import EMBEDDED


def test_every_name_has_weights_and_a_place_on_the_hub() -> None:
    for name in SHORTLIST[1:]:
        assert is_model_pretrained(name), name
        assert get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"


def test_only_what_lies_on_this_machine_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = find(EMBEDDED)
    assert package is not None
    there = {f"timm/{SHORTLIST[2]}", f"timm/{SHORTLIST[4]}", package.weights.hub if package.weights else ""}
    monkeypatch.setattr(shortlist, "place_of", lambda weights: Path("here") if weights.hub in there else None)
    assert on_this_machine() == (EMBEDDED, SHORTLIST[2], SHORTLIST[4])


def test_with_empty_caches_the_embedded_one_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert on_this_machine() == (EMBEDDED,)


def test_standing_rises_along_the_list_and_is_not_known_beyond() -> None:
    assert [standing(name) for name in SHORTLIST] == sorted(map(float, range(len(SHORTLIST))))
    assert standing("resnet50") == standing("resnet50.a1_in1k")
    assert all(standing(name) is None for name in ("resnet18", "resnet50.a2_in1k", "test_resnet", "hf-hub:a/b"))
