"""`finetune backbones rank` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = ("--set", "backbone.pretrained=false", "--image-size", "64", "--device", "cpu", "--workers", "0")


@pytest.fixture
def imgs(place: Path) -> Path:
    return place / "imgs"


def test_a_table_in_80_columns_says_what_to_take(finetune_cli, imgs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = finetune_cli("backbones", "rank", "--data", imgs, "test_resnet", "test_convnext", "nosuch", *QUICK)
    assert done.code == 0
    header, *rows = [line for line in done.out.splitlines() if line][:3]
    assert header.split()[:3] == ["backbone", "px", "GMACs"]
    assert {row.split()[0] for row in rows} == {"test_resnet", "test_convnext"}
    assert max(map(len, (header, *rows))) <= 80
    assert "\ntake test_" in done.out
    assert "left out: nosuch" in done.out
    assert "nosuch is left out: unknown backbone 'nosuch'" in done.err


def test_json_is_one_document(finetune_cli, imgs: Path) -> None:
    done = finetune_cli(
        "backbones", "rank", "--data", imgs, "test_resnet", "nosuch", "--json", "--sample", "20", *QUICK
    )
    found = json.loads(done.out)
    assert found["recommended"] == "test_resnet"
    assert found["num_images"] == 20
    (one,) = found["candidates"]
    assert set(one["predicted_top1"]) == {"value", "low", "high"}
    assert {"gmacs", "num_parameters", "image_size", "logme", "h_score", "knn_top1"} <= set(one)
    assert [failure["name"] for failure in found["failed"]] == ["nosuch"]


def test_nothing_that_can_be_used_ends_with_its_code_and_a_hint(finetune_cli, imgs: Path) -> None:
    done = finetune_cli("backbones", "rank", "--data", imgs, "resnet18.a1_in1k", "--device", "cpu")
    assert done.code == 4
    assert "not on this machine" in done.err
    assert "hint: " in done.err
    assert finetune_cli("backbones", "rank", "x", "--device", "cpu").code == 2
    assert finetune_cli("backbones", "rank", "--help").code == 0
