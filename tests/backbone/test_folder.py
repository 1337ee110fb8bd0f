"""A model as a timm folder: timm itself loads what was written, bit for bit, with labels and data config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.backbone.folder import is_folder, plain_tensors, read_config, write
from finetune.backbone.load import Backbone, architecture, load
from finetune.errors import BackboneError
from tests.support import LAYOUTS

CLASSES = ("ant", "bee", "Größe <b>")


def backbone(name: str, *, model_args: dict[str, Any] | None = None, image_size: int | None = None) -> Backbone:
    found = load(architecture(name, pretrained=False, model_args=model_args), num_classes=3, image_size=image_size)
    for module in found.model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return found


def written(found: Backbone, folder: Path, **more: Any) -> Path:
    write(
        found.model,
        folder,
        architecture=found.architecture.registered,
        model_args=found.model_args,
        preprocessing=found.preprocessing,
        classes=CLASSES,
        pretrained_cfg=found.model.pretrained_cfg,
        **more,
    )
    return folder


def pictures(found: Backbone) -> Tensor:
    return torch.randn(3, 3, *found.preprocessing.image_size)


@torch.no_grad()
def check_timm_agrees(found: Backbone, folder: Path) -> nn.Module:
    again: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = pictures(found)
    assert torch.equal(again(images), found.model.eval()(images))
    return again


@pytest.mark.parametrize("name", [*LAYOUTS, "test_efficientnet", "mobilenetv3_small_050"])
def test_timm_loads_what_was_written_with_bit_identical_logits(tmp_path: Path, name: str) -> None:
    found = backbone(name)
    check_timm_agrees(found, written(found, tmp_path / "model"))


@pytest.mark.parametrize("name", [*LAYOUTS, "deit_tiny_patch16_224"])
def test_timm_loads_a_model_of_another_image_size(tmp_path: Path, name: str) -> None:
    found = backbone(name, image_size=96, model_args={"depth": 2} if "deit" in name else None)
    again = check_timm_agrees(found, written(found, tmp_path / "model"))
    assert tuple(timm.data.resolve_model_data_config(again)["input_size"]) == (3, 96, 96)


def test_arguments_of_the_model_are_kept(tmp_path: Path) -> None:
    found = backbone("mobilenetv3_small_050", model_args={"pad_type": "same"})
    again = check_timm_agrees(found, written(found, tmp_path / "model"))
    assert type(again.conv_stem).__name__ == "Conv2dSame"


def test_timm_and_we_read_the_same_data_config_and_labels(tmp_path: Path) -> None:
    found = backbone("test_convnext")
    folder = written(found, tmp_path / "model")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(again)
    assert (tuple(config["mean"]), tuple(config["std"])) == (found.preprocessing.mean, found.preprocessing.std)
    assert (config["crop_pct"], config["interpolation"]) == (0.95, found.preprocessing.interpolation)
    assert tuple(again.pretrained_cfg["label_names"]) == CLASSES
    assert load(architecture("auto", weights=folder), num_classes=None).preprocessing == found.preprocessing
    assert read_config(folder).classes == CLASSES


@pytest.mark.parametrize("name", LAYOUTS)
def test_we_load_what_was_written(tmp_path: Path, name: str) -> None:
    found = backbone(name)
    again = load(architecture("auto", weights=written(found, tmp_path / "model")), num_classes=None)
    images = pictures(found)
    with torch.no_grad():
        assert torch.equal(again.model(images), found.model.eval()(images))
    assert again.weights is not None
    assert again.weights.share == 1.0


def test_the_config_says_what_the_folder_holds(tmp_path: Path) -> None:
    folder = written(
        backbone("test_resnet", model_args={"global_pool": "max"}), tmp_path / "a" / "b", probe_at="layer2"
    )
    config = read_config(folder)
    assert (config.architecture, config.model_args, config.probe_at) == (
        "test_resnet",
        {"global_pool": "max"},
        "layer2",
    )
    assert config.pretrained_cfg["num_classes"] == 3
    assert is_folder(folder)
    assert "probe_at" not in json.loads((written(backbone("test_resnet"), folder) / "config.json").read_text())


def test_tensors_in_another_memory_format_are_written(tmp_path: Path) -> None:
    found = backbone("test_resnet")
    found.model.to(memory_format=torch.channels_last)
    tensors = load_file(written(found, tmp_path / "model") / "model.safetensors")
    assert not found.model.layer1[0].conv1.weight.is_contiguous()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in found.model.state_dict().items())


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    tensors = plain_tensors(model.state_dict())
    assert tensors["0.weight"].data_ptr() != tensors["1.weight"].data_ptr()
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_writing_again_replaces_what_was_there(tmp_path: Path) -> None:
    found = backbone("test_resnet")
    folder = written(found, tmp_path)
    with torch.no_grad():
        found.model.fc.bias.add_(1)
    written(found, folder)
    assert torch.equal(load_file(folder / "model.safetensors")["fc.bias"], found.model.fc.bias)


def test_a_folder_without_a_config_is_none(tmp_path: Path) -> None:
    assert not is_folder(tmp_path)
    assert not is_folder(tmp_path / "gone")
    with pytest.raises(BackboneError, match=r"not a timm folder.*no config\.json"):
        read_config(tmp_path)
