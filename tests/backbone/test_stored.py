"""What is on this machine is found where the hub's package and torch keep it, and half a download is not."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

from finetune.backbone.catalogue import find
from finetune.backbone.stored import place_of, torch_checkpoints

COMMIT = "0" * 40


def hub_file(cache: Path, name: str, file: str = "model.safetensors") -> Path:
    """Lay a file into a hub cache as the hub's package does: a blob, a link in a snapshot, a ref."""
    folder = cache / f"models--{name.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs" / file).write_bytes(b"weights")
    link = folder / "snapshots" / COMMIT / file
    link.symlink_to(folder / "blobs" / file)
    return link


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def place(name: str) -> Path | None:
    entry = find(name)
    assert entry is not None
    return place_of(entry.weights)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_the_hubs_cache_are_here(cache: Path, file: str) -> None:
    assert place("resnet18") is None
    link = hub_file(cache, "timm/resnet18.a1_in1k", file)
    assert place("resnet18") == place("resnet18.a1_in1k") == link
    assert place("resnet18.tv_in1k") is None
    assert str(link) == huggingface_hub.try_to_load_from_cache("timm/resnet18.a1_in1k", file)


def test_weights_under_another_name_on_the_hub_are_here(cache: Path) -> None:
    hub_file(cache, "naver-ai/rdnet_tiny.nv_in1k")
    assert place("rdnet_tiny") is not None


def test_half_a_download_is_not_here(cache: Path) -> None:
    link = hub_file(cache, "timm/resnet18.a1_in1k")
    blob = link.resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    assert place("resnet18") is None


def test_the_config_alone_is_no_weights(cache: Path) -> None:
    hub_file(cache, "timm/resnet18.a1_in1k", "config.json")
    assert place("resnet18") is None


def test_a_snapshot_that_is_not_the_newest_is_not_here(cache: Path) -> None:
    link = hub_file(cache, "timm/resnet18.a1_in1k")
    (link.parents[2] / "refs" / "main").write_text("1" * 40)
    assert place("resnet18") is None


def test_a_checkpoint_of_torch_hub_is_here(cache: Path) -> None:
    assert place("gcvit_tiny") is None
    file = cache / "torch" / "hub" / "checkpoints" / "gcvit_tiny_224_nvidia-ac783954.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert place("gcvit_tiny") == file


def test_a_network_without_weights_is_nowhere(cache: Path) -> None:
    assert place("mobilenetv2_035") is None


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "/x"}, {"TORCH_HOME": "~/t"}, {"TORCH_HOME": "/t"}])
def test_the_checkpoints_are_where_torch_keeps_them(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert torch_checkpoints() == Path(torch.hub.get_dir()) / "checkpoints"
