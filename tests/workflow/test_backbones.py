"""Backbones as a user asks for them: what suits a wish, the image, and folders that hold the very weights."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from finetune import hub as asking
from finetune.backbone import folder as timm_folder
from finetune.backbone import load as loading
from finetune.errors import BackboneError, RecipeError, ResourceError
from finetune.settings import EMBEDDED_FULL
from finetune.workflow.backbones import Wish, facts, fetch_backbones, list_backbones, plot_backbones, show_backbone

COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and a network that must not be asked."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(asking, "_status", refuse)
    return cache


def publish(cache: Path, name: str) -> torch.nn.Module:
    """Put random weights of a network into the hub's cache under its name, and yield the network."""
    torch.manual_seed(3)
    model = timm.create_model(name).eval()
    parts = cache / f"models--timm--{name}"
    (parts / "refs").mkdir(parents=True)
    (parts / "refs" / "main").write_text(COMMIT)
    (parts / "snapshots" / COMMIT).mkdir(parents=True)
    save_file(model.state_dict(), parts / "snapshots" / COMMIT / "model.safetensors")
    return model


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "mobilenetv3_small_050.lamb_in1k"])
def test_what_is_fetched_is_loaded_by_timm_and_by_us_without_the_hub(hub: Path, tmp_path: Path, name: str) -> None:
    given = publish(hub, name)
    (done,) = fetch_backbones([name], tmp_path / "weights")
    assert (done.path, done.was_there) == (tmp_path / "weights" / name, False)
    again = timm.create_model(f"local-dir:{done.path}", pretrained=True).eval()
    images = torch.randn(2, 3, *timm.data.resolve_model_data_config(given)["input_size"][1:])
    assert torch.equal(again(images), given(images))
    ours = loading.load(loading.architecture("auto", weights=done.path), num_classes=3)
    assert ours.weights is not None
    assert ours.weights.share == 1.0
    straight = loading.load(loading.architecture(name), num_classes=3)
    assert ours.preprocessing == straight.preprocessing
    configs = [json.dumps(timm.data.resolve_model_data_config(model)) for model in (again, given)]
    assert configs[0] == configs[1]


def test_a_name_without_a_tag_is_fetched_with_the_default_weights(hub: Path, tmp_path: Path) -> None:
    publish(hub, "test_resnet.r160_in1k")
    (done,) = fetch_backbones(["test_resnet"], tmp_path)
    config = timm_folder.read_config(tmp_path / "test_resnet")
    assert done.path == tmp_path / "test_resnet"
    assert (config.architecture, config.pretrained_cfg["tag"]) == ("test_resnet", "r160_in1k")


def test_a_folder_that_is_there_is_neither_read_from_the_hub_nor_written(hub: Path, tmp_path: Path) -> None:
    publish(hub, "test_resnet.r160_in1k")
    fetch_backbones(["test_resnet"], tmp_path)
    file = tmp_path / "test_resnet" / "model.safetensors"
    before = file.stat().st_mtime_ns
    (hub / "models--timm--test_resnet.r160_in1k" / "refs" / "main").unlink()
    (done,) = fetch_backbones(["test_resnet"], tmp_path)
    assert done.was_there
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["file", "folder", "other network", "other weights"])
def test_a_place_that_something_else_has_taken_is_left_alone(hub: Path, tmp_path: Path, what: str) -> None:
    for name in ("test_vit.r160_in1k", "test_resnet.r160_in1k"):
        publish(hub, name)
    place = tmp_path / "test_resnet"
    if what == "file":
        place.write_text("mine")
    elif what == "folder":
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    else:
        fetch_backbones(["test_vit" if what == "other network" else "test_resnet"], tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / ("test_vit" if what == "other network" else "test_resnet")).rename(place)
        config = (place / "config.json").read_text().replace("r160_in1k", "another_tag")
        (place / "config.json").write_text(config)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ResourceError, match="exists and is not test_resnet"):
        fetch_backbones(["test_resnet"], tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_an_unknown_name_among_several_is_told_before_anything_is_written(hub: Path, tmp_path: Path) -> None:
    publish(hub, "test_resnet.r160_in1k")
    with pytest.raises(BackboneError, match="unknown backbone 'resnt50'"):
        fetch_backbones(["test_resnet", "resnt50"], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_weights_that_cannot_be_had_leave_nothing_behind(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="not on this machine, and the model hub cannot be reached"):
        fetch_backbones(["test_resnet"], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_half_written(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def half(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    publish(hub, "test_resnet.r160_in1k")
    monkeypatch.setattr(timm_folder, "save_file", half)
    with pytest.raises(ResourceError if isinstance(error, OSError) else KeyboardInterrupt):
        fetch_backbones(["test_resnet"], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_only_what_suits_every_wish_is_listed() -> None:
    wish = Wish(family="resnet", max_params=30, max_gmacs=4.2, min_top1=79, licences=("apache-2.0",))
    found = list_backbones("", wish)
    assert "resnet50" in [entry.name for entry in found]
    for entry in found:
        fact = facts(entry)
        assert fact["family"] == "resnet"
        assert fact["num_parameters"] <= 30e6
        assert fact["gmacs"] <= 4.2
        assert fact["imagenet_top1_percent"] >= 79
        assert fact["licence"] == "apache-2.0"


def test_only_what_is_here_is_listed_when_that_is_asked_for(hub: Path) -> None:
    def here() -> set[str]:
        return {entry.full_name for entry in list_backbones("", Wish(is_here=True))}

    assert here() == {EMBEDDED_FULL}
    publish(hub, "test_vit.r160_in1k")
    assert here() == {EMBEDDED_FULL, "test_vit.r160_in1k"}


def test_the_front_is_of_what_suits_the_wish() -> None:
    light, all_ = (list_backbones("resnet", wish, is_front=True) for wish in (Wish(max_params=15), Wish()))
    assert light
    assert all(entry.network.num_parameters <= 15e6 for entry in light)
    assert [entry.gmacs for entry in all_] == sorted(entry.gmacs or 0 for entry in all_)
    assert max(entry.top1 or 0 for entry in all_) > max(entry.top1 or 0 for entry in light)


def test_a_pattern_about_weights_is_not_about_other_weights_of_the_network() -> None:
    for found in (list_backbones("swsl", is_front=True), list_backbones("swsl")):
        assert found
        assert all("swsl" in entry.full_name for entry in found)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(family="resnt"), "no family 'resnt'. Did you mean 'resnet'"),
        (Wish(licences=("apache2",)), "no licence 'apache2'. Did you mean 'apache-2.0'"),
        (Wish(licences=("?",)), "One of apache-2.0, "),
        (Wish(min_top1=0.8), "give a percentage"),
        (Wish(min_top1=180), "give a percentage"),
    ],
)
def test_a_wish_that_makes_no_sense_is_an_error(wish: Wish, words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace("?", r"\?")):
        list_backbones("", wish)


def test_a_pattern_that_is_no_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match=r"no backbone is called 'resnt50'.*'resnet50'"):
        list_backbones("resnt50")


def test_everything_about_one_backbone_is_shown(hub: Path) -> None:
    publish(hub, "test_resnet.r160_in1k")
    found = show_backbone("test_resnet")
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    assert found["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["layer_groups"][0] == "stem"
    assert found["layer_groups"][-1] == "head"
    assert found["source"] == "hf-hub:timm/test_resnet.r160_in1k"
    assert found["place"].endswith("model.safetensors")
    assert show_backbone("gcvit_tiny")["source"].startswith("torch.hub")
    assert show_backbone("mobilenetv2_035")["source"] is None


@pytest.mark.parametrize("name", ["resnet50.nonesuch", "resnt50"])
def test_an_unknown_backbone_is_an_error_with_the_nearest(name: str) -> None:
    with pytest.raises(BackboneError, match=f"unknown backbone '{name}'.*Did you mean 'resnet50"):
        show_backbone(name)


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_picture_is_drawn_and_the_same_every_time(tmp_path: Path, suffix: str, start: bytes) -> None:
    for name in ("one", "two"):
        plot_backbones(tmp_path / "new" / f"{name}{suffix}", "resnet18")
    one, two = ((tmp_path / "new" / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one.startswith(start)
    assert one == two
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_a_picture_of_nothing_or_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\.svg or \.png"):
        plot_backbones(tmp_path / "a.jpg", "resnet18")
    with pytest.raises(BackboneError, match="none of these"):
        plot_backbones(tmp_path / "a.svg", "dinov2")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        plot_backbones(tmp_path / "file" / "a.svg", "resnet18")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
