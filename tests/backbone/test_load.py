"""A backbone by name: the same every time, from the weights that were named, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from finetune import hub
from finetune import recipe as recipes
from finetune.backbone.blank import blank_images, channels_of
from finetune.backbone.load import Architecture, Backbone, architecture, load, skeleton
from finetune.errors import BackboneError
from finetune.prepare.inputs import architecture_of
from tests.support import LAYOUTS


def fresh(name: str, *, seed: int = 0, num_classes: int = 3, **more: Any) -> Backbone:
    return load(architecture(name, pretrained=False), num_classes=num_classes, seed=seed, **more)


def is_same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def saved(folder: Path, name: str = "test_resnet", **config: Any) -> nn.Module:
    """Write a timm folder as timm itself does, and yield the network in it."""
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=config.get("num_classes", 4))
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    content = {"architecture": name, "num_classes": 4, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return model


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache and no network: HF_HUB_OFFLINE is read when the hub's package is imported."""
    hub._status.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_random_depends_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    one = fresh(name).model
    torch.rand(7)
    assert is_same(one, fresh(name).model)
    other = fresh(name, seed=1).model.state_dict()
    differing = [key for key, tensor in one.state_dict().items() if not torch.equal(tensor, other[key])]
    assert len([key for key in differing if key.endswith("weight")]) > 5


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    fresh("test_resnet")
    assert torch.equal(torch.rand(3), wanted)


def test_the_head_is_fresh_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    given = saved(tmp_path / "given")
    of = architecture("auto", weights=tmp_path / "given")
    first, again, other = (load(of, num_classes=4, seed=seed).model for seed in (0, 0, 1))
    assert is_same(first, again)
    assert not torch.equal(first.fc.weight, other.fc.weight)
    assert not torch.equal(first.fc.weight, given.fc.weight)
    assert all(torch.equal(t, given.state_dict()[k]) for k, t in other.state_dict().items() if not k.startswith("fc."))


def test_without_a_number_of_classes_the_head_is_kept(tmp_path: Path) -> None:
    given = saved(tmp_path / "given")
    assert is_same(load(architecture("auto", weights=tmp_path / "given"), num_classes=None).model, given)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_loaded_backbone_is_whole(name: str) -> None:
    backbone = fresh(name, num_classes=5)
    size = backbone.preprocessing.image_size
    assert not backbone.model.training
    assert backbone.weights is None
    assert backbone.model(torch.zeros(2, 3, *size)).shape == (2, 5)
    assert sorted(key for group in backbone.groups for key in group.parameters) == sorted(
        key for key, _ in backbone.model.named_parameters()
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_skeleton_has_the_layer_groups_and_no_memory(name: str) -> None:
    bare, whole = skeleton(architecture(name), num_classes=5), fresh(name, num_classes=5)
    assert bare.groups == whole.groups
    assert bare.preprocessing == whole.preprocessing
    assert {parameter.device.type for parameter in bare.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_18", "resnet18"), ("test_resnett", "test_resnet"), ("vit_tiny_patch16", "vit_tiny")]
)
def test_an_unknown_name_is_an_error_with_the_nearest_names(name: str, near: str) -> None:
    with pytest.raises(BackboneError, match=f"unknown backbone '{name}'.*Did you mean.*{near}") as caught:
        architecture(name)
    assert "hf-hub:" in caught.value.hint


def test_a_name_that_is_near_nothing_is_an_error_without_a_guess() -> None:
    with pytest.raises(BackboneError, match=r"unknown backbone 'q{20}'\.$"):
        architecture("q" * 20)


@pytest.mark.parametrize(("size", "near"), [(100, "96 or 112"), (10, "16 or 16"), (161, "160 or 176")])
def test_a_size_that_would_leave_pixels_out_is_an_error_with_sizes(size: int, near: str) -> None:
    with pytest.raises(BackboneError, match=f"patches of 16 pixels, and {size} is not a multiple") as caught:
        fresh("vit_tiny_patch16_224", image_size=size)
    assert near in caught.value.hint


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "mixer_s32_224", "gmlp_ti16_224", "test_vit"])
def test_no_pixels_are_dropped_in_silence(name: str) -> None:
    with pytest.raises(BackboneError, match="not a multiple"):
        fresh(name, image_size=37)


@pytest.mark.parametrize("size", [8, 32])
def test_a_picture_too_small_for_the_network_is_an_error(size: int) -> None:
    with pytest.raises(BackboneError, match=f"inception_v3 does not take images of {size} pixels") as caught:
        fresh("inception_v3", image_size=size)
    assert "--image-size" in caught.value.hint


def test_a_network_that_refuses_a_size_without_a_word_is_an_error() -> None:
    with pytest.raises(BackboneError, match="bat_resnext26ts does not take images of 96 pixels: AssertionError"):
        fresh("bat_resnext26ts", image_size=96)


def test_a_picture_of_which_nothing_is_left_is_an_error() -> None:
    with pytest.raises(BackboneError, match=r"efficientvit_m0.*modulo by zero"):
        fresh("efficientvit_m0", image_size=8)


def test_a_size_is_kept_by_networks_of_fixed_and_of_free_size() -> None:
    for name in LAYOUTS:
        backbone = fresh(name, image_size=96)
        assert backbone.preprocessing.image_size == (96, 96)
        assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert fresh("deit_tiny_patch16_224", image_size=96).model_args == {"img_size": 96}
    assert fresh("test_resnet", image_size=96).model_args == {}


@pytest.mark.parametrize("argument", [{"no_such_argument": 1}, {"img_size": 96}])
def test_an_argument_that_the_network_does_not_take_is_an_error(argument: dict[str, int]) -> None:
    with pytest.raises(BackboneError, match="does not take these arguments"):
        load(architecture("test_resnet", pretrained=False, model_args=argument), num_classes=3)


def test_an_argument_reaches_the_network() -> None:
    of = architecture("test_vit", pretrained=False, model_args={"drop_path_rate": 0.5})
    rates = [m.drop_prob for m in load(of, num_classes=3).model.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == 0.5


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet", "resnet18.a1_in1k", "deit_tiny_patch16_224", "hf-hub:timm/resnet18.a1_in1k",
        "hf-hub:nobody/nothing",
    ],
)  # fmt: skip
def test_weights_that_are_not_here_are_an_error_that_names_the_way_out(name: str) -> None:
    with pytest.raises(BackboneError, match=f"the weights of {name} are not on this machine") as caught:
        found = architecture(name)
        assert not name.startswith("hf-hub:"), "of a name on the hub the architecture is read from there too"
        load(found, num_classes=3)
    assert "--weights PATH" in caught.value.hint


@pytest.mark.usefixtures("no_hub")
def test_a_hub_name_that_is_none_is_an_error() -> None:
    with pytest.raises(BackboneError, match="hf-hub:a b/c is not the name of a model"):
        architecture("hf-hub:a b/c")


@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_does_not_answer_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(request: Any, timeout: float) -> None:
        asked.append(request.full_url)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", refuse)
    with pytest.raises(BackboneError, match="the weights of test_resnet are not on this machine") as caught:
        load(architecture("test_resnet"), num_classes=3)
    assert "--weights PATH" in caught.value.hint
    assert asked == [huggingface_hub.constants.ENDPOINT]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_with_an_error_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Any, timeout: float) -> None:
        raise HTTPError(request.full_url, 403, "no", {}, None)  # type: ignore[arg-type]

    hub._status.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", answer)
    assert hub.hub_is_reachable()


@pytest.mark.usefixtures("no_hub")
def test_a_network_without_pretrained_weights_is_an_error() -> None:
    name = next(name for name in timm.list_models("resnet*") if not timm.models.is_model_pretrained(name))
    with pytest.raises(BackboneError, match=f"timm has no pretrained weights for {name}"):
        load(architecture(name), num_classes=3)


@pytest.mark.usefixtures("no_hub")
def test_an_unknown_tag_of_a_known_network_is_an_error() -> None:
    with pytest.raises(BackboneError, match=r"test_resnet\.nonesuch"):
        load(architecture("test_resnet.nonesuch"), num_classes=3)


def test_a_network_without_a_classifier_is_an_error_where_one_is_asked_for() -> None:
    of = architecture("qwen3_vit_88m_enc", pretrained=False)
    assert not any(group.is_head for group in skeleton(of, num_classes=None).groups)
    with pytest.raises(BackboneError, match="has no classifier"):
        skeleton(of, num_classes=3)


@pytest.mark.parametrize("name", ["local-dir:{}", "auto"])
def test_the_config_of_a_folder_is_obeyed(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "given", "mobilenetv3_small_050", model_args={"pad_type": "same"})
    given = tmp_path / "given"
    of = architecture(name.format(given), weights=None if name != "auto" else given)
    backbone = load(of, num_classes=3)
    assert (of.registered, of.weights) == ("mobilenetv3_small_050", given)
    assert (backbone.preprocessing.mean, backbone.preprocessing.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert type(backbone.model.conv_stem).__name__ == "Conv2dSame"
    assert backbone.weights is not None
    assert backbone.weights.share == 1.0


def test_arguments_of_the_recipe_win_over_those_of_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "given", "mobilenetv3_small_050", model_args={"pad_type": "same"})
    of = architecture("auto", weights=tmp_path / "given", model_args={"pad_type": ""})
    assert type(load(of, num_classes=3).model.conv_stem).__name__ == "Conv2d"


def test_a_folder_in_timms_old_flat_form_is_read(tmp_path: Path) -> None:
    given = saved(tmp_path / "given")
    flat = {"architecture": "test_resnet", "num_classes": 4, "num_features": 96, "mean": [0.1, 0.2, 0.3], "labels": []}
    (tmp_path / "given" / "config.json").write_text(json.dumps(flat))
    backbone = load(architecture("auto", weights=tmp_path / "given"), num_classes=None)
    assert is_same(backbone.model, given)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)


def test_a_folder_without_a_number_of_classes_is_read(tmp_path: Path) -> None:
    given = saved(tmp_path / "given", num_classes=None)
    backbone = load(architecture("auto", weights=tmp_path / "given"), num_classes=3)
    assert torch.equal(backbone.model.conv1[0].weight, given.conv1[0].weight)


@pytest.mark.parametrize(
    "config", [{"mean": 3}, {"std": [1, 2]}, {"crop_pct": "most"}, {"input_size": 64}, {"input_size": [3, "a", "b"]}]
)
def test_a_data_config_that_makes_no_sense_is_an_error(tmp_path: Path, config: dict[str, Any]) -> None:
    saved(tmp_path / "given", pretrained_cfg=config)
    with pytest.raises(BackboneError, match="test_resnet"):
        load(architecture("auto", weights=tmp_path / "given"), num_classes=3)


def test_a_data_config_may_hold_more_than_this_timm_knows(tmp_path: Path) -> None:
    saved(tmp_path / "given", pretrained_cfg={"mean": [0.1, 0.2, 0.3], "from_the_future": 1})
    backbone = load(architecture("auto", weights=tmp_path / "given"), num_classes=3)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("weights", ["file", "folder"])
def test_weights_of_another_network_are_an_error(tmp_path: Path, weights: str) -> None:
    saved(tmp_path / "given", "test_convnext")
    place = tmp_path / "given" / ("model.safetensors" if weights == "file" else "")
    with pytest.raises(BackboneError, match=r"0% of the weights of test_resnet|not of test_resnet"):
        load(architecture("test_resnet", weights=place), num_classes=3)


def test_a_file_alone_does_not_say_which_network_it_is(tmp_path: Path) -> None:
    saved(tmp_path / "given")
    file = tmp_path / "given" / "model.safetensors"
    with pytest.raises(BackboneError, match="does not say which network") as caught:
        architecture("auto", weights=file)
    assert "--backbone" in caught.value.hint
    backbone = load(architecture("test_resnet", weights=file), num_classes=3)
    assert backbone.weights is not None
    assert backbone.weights.source == str(file)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (None, "no config.json"),
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ("{}", "cannot be used"),
        ('{"architecture": "nonesuch"}', "unknown network, 'nonesuch'"),
        ('{"architecture": "test_resnet", "pretrained_cfg": 3}', "cannot be used"),
        ('{"architecture": "test_resnet", "model_args": 3}', "cannot be used"),
    ],
)
def test_a_folder_with_a_broken_config_is_an_error_that_names_it(tmp_path: Path, config: str, match: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(BackboneError, match=match) as caught:
        architecture("auto", weights=tmp_path)
    assert str(tmp_path) in caught.value.message


def test_weights_that_are_not_there_are_an_error() -> None:
    for name, weights in (("test_resnet", Path("gone.pth")), ("local-dir:gone", None)):
        with pytest.raises(BackboneError, match="no weights at gone"):
            architecture(name, weights=weights)


def test_the_label_of_a_pretrained_name_is_the_network() -> None:
    of = architecture("resnet18.a1_in1k")
    assert of == Architecture("resnet18.a1_in1k", "resnet18")
    assert of.label == "resnet18"


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_than_the_recipe_is_an_error_with_the_way_out(
    tmp_path: Path, channels: int
) -> None:
    saved(tmp_path / "given", model_args={"in_chans": channels})
    for named in (
        {"backbone.name": "test_resnet", "backbone.model_args": {"in_chans": channels}},
        {"backbone.weights": str(tmp_path / "given")},
    ):
        with pytest.raises(BackboneError, match=f"in_chans = {channels}: images have 3 channels") as caught:
            architecture_of(recipes.load(overrides={"backbone.pretrained": False, **named}))
        assert "--weights FILE --backbone NAME" in caught.value.hint


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "lenet5"])
@pytest.mark.parametrize("build", [load, skeleton])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_is_built_and_its_images_are_too(
    name: str, build: Callable[..., Backbone], channels: int
) -> None:
    of = architecture(name, pretrained=False, model_args={"in_chans": channels})
    backbone = build(of, num_classes=3)
    own = backbone.preprocessing
    assert own.channels == channels_of(backbone.model) == channels == len(own.mean) == len(own.std)
    assert tuple(backbone.model.eval()(blank_images(backbone.model, own.image_size)).shape) == (1, 3)
