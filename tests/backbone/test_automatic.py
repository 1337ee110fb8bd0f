"""Where no backbone is named: the first of the list that is to be had, else the embedded one, and one line about it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from finetune import hub
from finetune import recipe as recipes
from finetune.backbone import automatic
from finetune.backbone.automatic import AUTO, NO_HUB_HINT, chosen
from finetune.backbone.load import architecture
from finetune.backbone.packaged import INSTALL
from finetune.prepare.inputs import with_backbone
from finetune.settings import DEFAULT_BACKBONE, EMBEDDED
from finetune.types import Event


@pytest.fixture(autouse=True)
def _nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    hub._status.cache_clear()
    monkeypatch.setattr(automatic, "is_here", lambda name: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", refuse)


def refuse(request: Any, timeout: float) -> None:
    raise URLError("no network")


class Answer:
    status = 206

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_every_name_of_the_list_has_weights_on_the_hub() -> None:
    assert AUTO[0] == DEFAULT_BACKBONE
    assert [get_pretrained_cfg(name).hf_hub_id for name in AUTO] == [f"timm/{name}" for name in AUTO]


def test_with_neither_weights_nor_hub_it_is_the_embedded_one_and_one_line_names_the_ways_out() -> None:
    found = chosen()
    assert found.name == EMBEDDED
    assert "\n" not in found.line
    assert all(words in found.line for words in ("accurate", INSTALL, "hub", "--weights"))


def test_the_first_whose_weights_are_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "is_here", lambda name: name in AUTO[2:4])
    assert chosen().name == AUTO[2]
    assert AUTO[2] in chosen().line
    assert architecture("auto").name == AUTO[2]


def test_what_the_hub_gives_comes_before_what_stands_later_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "is_here", lambda name: name == AUTO[2])
    monkeypatch.setattr(hub, "urlopen", lambda request, timeout: Answer())
    assert chosen() == automatic.Chosen(AUTO[0])


def test_a_hub_that_answers_but_gives_nothing_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(request: Any, timeout: float) -> None:
        raise HTTPError(request.full_url, 403, "no", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "urlopen", forbid)
    assert hub.hub_is_reachable()
    assert chosen().name == EMBEDDED


def test_the_hub_is_asked_once_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hang(request: Any, timeout: float) -> Answer:
        asked.append(request.full_url)
        time.sleep(0.5)
        return Answer()

    monkeypatch.setattr(hub, "PATIENCE", 0.01)
    monkeypatch.setattr(hub, "urlopen", hang)
    assert chosen().name == chosen().name == EMBEDDED
    assert asked == [constants.ENDPOINT]


def test_a_recipe_names_it_once_and_a_named_backbone_is_never_replaced(tmp_path: Path) -> None:
    told: list[Event] = []
    found = with_backbone(recipes.load(), on_event=told.append)
    assert found.backbone.name == EMBEDDED
    assert [event.kind for event in told] == ["warning"]
    for changes in ({"backbone.name": "resnet50"}, {"backbone.weights": str(tmp_path)}):
        named = recipes.load(overrides=changes)
        assert with_backbone(named, on_event=told.append) == named
    assert len(told) == 1


def test_from_random_weights_it_is_the_first_choice_whatever_is_here() -> None:
    for changes in ({"backbone.pretrained": False}, {"strategy.name": "scratch"}):
        assert with_backbone(recipes.load(overrides=changes)).backbone.name == DEFAULT_BACKBONE
    assert architecture("auto", pretrained=False).name == DEFAULT_BACKBONE


def test_the_hint_without_a_hub_names_every_way_out() -> None:
    assert all(words in NO_HUB_HINT for words in (INSTALL, "--weights", "HF_HOME", EMBEDDED, "--no-pretrained"))
