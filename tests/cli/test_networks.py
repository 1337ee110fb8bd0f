"""`plan NAME --layers`, and the page on the networks of the notes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm

import finetune.backbone.classics  # noqa: F401  (registers them)

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
NAMES = [name for line in PAGE.splitlines() if line.startswith("| ") for name in re.findall(r"`([a-z0-9_]+)`", line)]


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_page_shows_what_plan_prints_of_lenet(finetune_cli) -> None:
    block = PAGE.partition("finetune plan lenet5 --layers\n...\n")[2].partition("```")[0]
    shown = lines_of(finetune_cli("plan", "lenet5", "--layers").out)
    assert len(lines_of(block)) == 8
    assert [line for line in shown if line in lines_of(block)] == lines_of(block)


def test_the_page_names_networks_that_are_there() -> None:
    assert len(NAMES) == 15
    assert [name for name in NAMES if not timm.is_model(name)] == []


@pytest.mark.parametrize("name", ["lenet5", "googlenet", "resnet32", "vgg16", "inception_v3", "mobilenetv2_100"])
def test_layers_are_shown_by_name_alone(finetune_cli, name: str) -> None:
    done = finetune_cli("plan", name, "--layers", "--json")
    found = json.loads(done.out)
    assert (done.code, found["backbone"], found["phases"]) == (0, name, [])
    assert sum(row["num_parameters"] for row in found["layers"]["rows"]) == found["num_parameters"]


def test_layers_without_data_say_what_is_left_open(finetune_cli) -> None:
    assert "add --data DIR, or name a --strategy" in finetune_cli("plan", "lenet5", "--layers").out
    without = finetune_cli("plan", "lenet5")
    assert (without.code, "there is none" in without.err) == (2, True)


def test_a_name_and_a_flag_that_disagree_are_an_error(finetune_cli) -> None:
    done = finetune_cli("plan", "lenet5", "--backbone", "vgg16")
    assert (done.code, "two backbones: lenet5 and" in done.err) == (2, True)
    assert finetune_cli("plan", "lenet5", "--backbone", "lenet5", "--strategy", "full").code == 0


def test_layers_and_their_sums_fit_into_80_columns(finetune_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lenet = lines_of(finetune_cli("plan", "lenet5", "--layers", "--strategy", "full").out.partition("\nlayer  ")[2])
    sums = lines_of(finetune_cli("plan", "vgg16", "--layers", "--strategy", "full").out)[-3:]
    assert "15,241,704 values, 61.0 MB in float32" in sums[0]
    assert max(map(len, lenet + sums)) <= 80
