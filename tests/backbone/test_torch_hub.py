"""torchvision's weights: from torch hub's folder without a network, else one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torchvision import models

from finetune.backbone import load as loading
from finetune.backbone import torch_hub
from finetune.backbone.load import architecture, load
from finetune.errors import BackboneError

GOOGLENET = "googlenet-1378be20.pth"


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder of checkpoints, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def write_googlenet(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = models.googlenet(aux_logits=True, init_weights=False).state_dict()
    torch.save(state, folder / GOOGLENET)
    return state


@pytest.mark.parametrize("name", ["googlenet", "googlenet.tv_in1k"])
def test_a_file_of_torchvision_is_loaded_without_a_network(checkpoints: Path, name: str) -> None:
    state = write_googlenet(checkpoints)
    backbone = load(architecture(name), num_classes=3)
    own = backbone.model.state_dict()
    renewed = ("fc.", "aux1.fc2.", "aux2.fc2.")
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items() if not key.startswith(renewed))
    assert all(own[key].shape[0] == 3 for key in own if key.startswith(renewed))
    assert backbone.weights is not None
    assert backbone.weights.sentence() == f"100% of the backbone's weights from torch hub ({GOOGLENET})"
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)


def test_the_names_of_alexnet_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        theirs = models.alexnet().state_dict()
    bare = loading.skeleton(architecture("alexnet"), num_classes=None).model.state_dict()
    assert {key: value.shape for key, value in bare.items()} == {key: value.shape for key, value in theirs.items()}


def test_a_file_of_torchvision_is_taken_as_weights(tmp_path: Path) -> None:
    state = write_googlenet(tmp_path)
    backbone = load(architecture("googlenet", weights=tmp_path / GOOGLENET), num_classes=3)
    assert torch.equal(backbone.model.inception5b.branch1.conv.weight, state["inception5b.branch1.conv.weight"])
    assert backbone.weights is not None
    assert (backbone.weights.share, backbone.weights.missing, backbone.weights.unexpected) == (1.0, (), ())


@pytest.mark.parametrize("name", ["alexnet", "googlenet.tv_in1k"])
def test_a_file_that_is_not_here_is_an_error_that_names_it_and_the_way_out(checkpoints: Path, name: str) -> None:
    with pytest.raises(BackboneError, match=f"the weights of {name} are not on this machine") as caught:
        load(architecture(name), num_classes=3)
    assert str(checkpoints) in caught.value.message
    assert caught.value.hint == loading.NO_HUB_HINT
    assert list(checkpoints.iterdir()) == []


def test_a_file_that_cannot_be_fetched_is_an_error(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(loading, "hub_is_reachable", lambda address: True)
    monkeypatch.setattr(torch_hub, "download_url_to_file", refuse)
    with pytest.raises(
        BackboneError, match=r"weights of googlenet could not be downloaded: connection reset"
    ) as caught:
        load(architecture("googlenet"), num_classes=3)
    assert "--weights" in caught.value.hint


def test_a_file_that_is_fetched_is_checked_by_the_hash_in_its_name(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_googlenet(tmp_path)  # not the file that the hash in the name is of
    there = torch_hub.hub_file_of("googlenet")
    assert there is not None
    file = torch_hub.HubFile((tmp_path / GOOGLENET).as_uri(), there.path)
    monkeypatch.setattr(loading, "hub_is_reachable", lambda address: True)
    monkeypatch.setattr(torch_hub, "hub_file_of", lambda name: file)
    with pytest.raises(BackboneError, match="could not be downloaded: invalid hash value"):
        load(architecture("googlenet"), num_classes=3)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", "others"])
def test_a_damaged_file_is_an_error_that_names_it(checkpoints: Path, content: bytes | str) -> None:
    file = checkpoints / GOOGLENET
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(BackboneError, match="cannot be used as the weights of googlenet") as caught:
        load(architecture("googlenet"), num_classes=3)
    assert str(file) in caught.value.message
    assert "Remove the file" in caught.value.hint


def test_an_argument_that_the_network_does_not_take_is_not_blamed_on_the_file(checkpoints: Path) -> None:
    (checkpoints / GOOGLENET).write_bytes(b"")
    with pytest.raises(BackboneError, match="does not take these arguments"):
        load(architecture("googlenet", model_args={"nonesuch": 1}), num_classes=3)


def test_a_number_in_a_name_that_is_no_hash_is_not_checked(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "given.pth").write_bytes(b"anything")
    file = torch_hub.HubFile((tmp_path / "given.pth").as_uri(), checkpoints / "vit.h.14-300e.pth")
    torch_hub.download(file, "vit", hint="")
    assert file.path.read_bytes() == b"anything"


def test_what_lies_on_the_model_hub_is_not_looked_for_in_torch_hub() -> None:
    assert torch_hub.hub_file_of("resnet18.a1_in1k") is None
    assert torch_hub.hub_file_of("lenet5") is None
    assert torch_hub.hub_file_of("nonesuch") is None
