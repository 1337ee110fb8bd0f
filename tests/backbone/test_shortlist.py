"""The short list names what timm has weights of; only what is on this machine is proposed."""

from __future__ import annotations

import pytest
from timm.models import get_pretrained_cfg, is_model_pretrained

from finetune.backbone import shortlist
from finetune.backbone.shortlist import SHORTLIST, has_weights_here, on_this_machine, standing
from finetune.settings import EMBEDDED


def test_every_name_has_weights_and_a_place_on_the_hub() -> None:
    for name in SHORTLIST[1:]:
        assert is_model_pretrained(name), name
        assert get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"


def test_only_what_lies_in_the_hubs_cache_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {(f"timm/{SHORTLIST[2]}", "model.safetensors"), (f"timm/{SHORTLIST[4]}", "pytorch_model.bin")}
    monkeypatch.setattr(shortlist, "try_to_load_from_cache", lambda *at: "path" if at in there else None)
    assert on_this_machine() == (EMBEDDED, SHORTLIST[2], SHORTLIST[4])
    assert not has_weights_here("resnet18.a1_in1k")


def test_a_file_that_the_hub_is_known_to_lack_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "try_to_load_from_cache", lambda *at: object())  # the hub's mark for that
    assert on_this_machine() == (EMBEDDED,)


def test_standing_rises_along_the_list_and_is_not_known_beyond() -> None:
    assert [standing(name) for name in SHORTLIST] == sorted(map(float, range(len(SHORTLIST))))
    assert standing("resnet50") == standing("resnet50.a1_in1k")
    assert all(standing(name) is None for name in ("resnet18", "resnet50.a2_in1k", "test_resnet", "hf-hub:a/b"))
