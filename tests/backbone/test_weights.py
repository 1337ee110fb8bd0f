"""Weights from a file: read without running anything, mended where they can be, refused where they cannot."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from finetune.backbone.groups import layer_groups
from finetune.backbone.sets import CONTAINERS, PREFIXES
from finetune.backbone.weights import (
    LoadReport,
    load_into,
    model_of_run,
    read_weights,
    refuse_random,
)
from finetune.errors import BackboneError
from tests.support import network


def state(**arguments: Any) -> dict[str, Tensor]:
    return network(**arguments).state_dict()


def is_same(model: nn.Module, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_what_was_saved_is_read_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    file, tensors = tmp_path / f"weights.{suffix}", state()
    (save_file if suffix == "safetensors" else torch.save)(tensors, file)
    found = read_weights(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_state_is_found_in_its_container(tmp_path: Path, container: str) -> None:
    tensors = state()
    torch.save({"epoch": 3, "arch": "test_resnet", container: tensors}, tmp_path / "checkpoint.pth")
    assert read_weights(tmp_path / "checkpoint.pth").keys() == tensors.keys()


def test_tensors_beside_other_things_are_read_alone(tmp_path: Path) -> None:
    torch.save({**state(), "epoch": 3, "args": {"lr": 0.1}, "loss": [1.0]}, tmp_path / "mixed.pth")
    assert read_weights(tmp_path / "mixed.pth").keys() == state().keys()


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "_orig_mod.module.", "module.backbone."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    tensors, model = state(seed=1), network()
    report = load_into(model, {prefix + key: t for key, t in tensors.items()}, architecture="test_resnet", source="x")
    assert is_same(model, tensors)
    assert (report.share, report.missing, report.unexpected) == (1.0, (), ())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_classifier_of_another_size_is_left_out(name: str) -> None:
    model, other = network(name, num_classes=4), network(name, num_classes=7, seed=1)
    head = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.startswith(("fc", "head.", "cla"))}
    report = load_into(model, other.state_dict(), architecture=name, source="other.pth")
    own, given = model.state_dict(), other.state_dict()
    differing = {key for key in own if own[key].shape != given[key].shape}
    assert differing
    assert all(torch.equal(own[key], head[key] if key in differing else given[key]) for key in own)
    assert report.share == 1.0
    assert (report.missing, report.unexpected, report.other_shape) == ((), (), ())
    assert report.sentence() == "100% of the backbone's weights from other.pth"


def test_what_is_missing_unexpected_or_of_another_shape_is_told() -> None:
    tensors = state(seed=1)
    del tensors["bn1.bias"], tensors["bn1.running_mean"], tensors["layer1.0.bn1.num_batches_tracked"]
    tensors["more"] = torch.zeros(1)
    tensors["bn1.weight"] = torch.zeros(3)
    model, before = network(), state()["bn1.bias"]
    report = load_into(model, tensors, architecture="test_resnet", source="x.pth")
    assert set(report.missing) == {"bn1.bias", "bn1.running_mean"}
    assert (report.unexpected, report.other_shape) == (("more",), ("bn1.weight",))
    assert 0.99 < report.share < 1
    assert torch.equal(model.get_parameter("bn1.bias"), before)
    assert "missing (bn1.bias, bn1.running_mean), 1 of another shape (bn1.weight), 1 not used" in report.sentence()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state(seed=1).items()}
    save_file(tensors, tmp_path / "half.safetensors")
    model = network()
    load_into(model, read_weights(tmp_path / "half.safetensors"), architecture="test_resnet", source="x")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert is_same(model, {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})


@pytest.mark.parametrize("given", ["test_convnext", "test_vit", "resnet18"])
def test_weights_of_another_network_are_refused_and_change_nothing(given: str) -> None:
    model, before = network(), state()
    with pytest.raises(BackboneError, match=r"wrong\.pth holds \d+% of the weights of test_resnet") as caught:
        load_into(model, state(name=given), architecture="test_resnet", source="wrong.pth")
    assert "--backbone" in caught.value.hint
    assert is_same(model, before)


def test_a_network_is_refused_whatever_its_filter_makes_of_foreign_keys() -> None:
    for name in ("test_vit", "test_convnext", "test_efficientnet", "levit_128s"):
        with pytest.raises(BackboneError):
            load_into(network(name), state(), architecture=name, source="wrong.pth")


def test_position_embeddings_of_another_size_are_resized() -> None:
    large, small = network("test_vit"), timm.create_model("test_vit", img_size=96, num_classes=4)
    report = load_into(small, large.state_dict(), architecture="test_vit", source="x")
    assert report.share == 1.0
    assert small.pos_embed.shape[1] == 6 * 6 + large.pos_embed.shape[1] - 10 * 10


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pth")
    with pytest.raises(BackboneError, match="is refused"):
        read_weights(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / f"cut.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state(), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(BackboneError, match=rf"cut\.{suffix}"):
        read_weights(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b"\x00" * 8, b"{}"])
def test_noise_is_an_error_that_names_the_file(tmp_path: Path, suffix: str, start: bytes) -> None:
    file = tmp_path / f"noise.{suffix}"
    file.write_bytes(start + np.random.default_rng(0).bytes(3000))
    with pytest.raises(BackboneError, match="noise"):
        read_weights(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_is_read_or_is_an_error_that_names_it(tmp_path: Path, is_zip: bool) -> None:
    file, rng, num_refused = tmp_path / "damaged.pth", np.random.default_rng(0), 0
    torch.save({f"layer{i}": torch.zeros(2) for i in range(3)}, file, _use_new_zipfile_serialization=is_zip)
    whole = file.read_bytes()
    for _ in range(400):
        broken = bytearray(whole)
        broken[rng.integers(min(len(whole), 700))] = rng.integers(256)
        file.write_bytes(broken)
        try:
            assert read_weights(file)
        except BackboneError as error:
            num_refused += "damaged.pth" in error.message
    assert num_refused > 50


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, [torch.zeros(2)], torch.zeros(2), {"state_dict": {}}, 3, None])
def test_a_file_without_named_tensors_is_an_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(BackboneError, match="holds no tensors by name"):
        read_weights(tmp_path / "none.pth")


def test_a_safetensors_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(BackboneError, match="holds no tensors by name"):
        read_weights(tmp_path / "none.safetensors")


def test_a_folder_gives_its_first_weights_file(tmp_path: Path) -> None:
    torch.save(state(seed=1), tmp_path / "pytorch_model.bin")
    assert torch.equal(read_weights(tmp_path)["conv1.0.weight"], state(seed=1)["conv1.0.weight"])
    save_file(state(seed=2), tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path)["conv1.0.weight"], state(seed=2)["conv1.0.weight"])


def test_a_folder_or_path_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="holds no weights") as caught:
        read_weights(tmp_path)
    assert "model.safetensors" in caught.value.hint
    for name in ("gone.pth", "gone.safetensors"):
        with pytest.raises(BackboneError, match=f"no weights file .*{name}"):
            read_weights(tmp_path / name)


def loaded(tensors: dict[str, Tensor], **more: Any) -> tuple[nn.Module, LoadReport]:
    model = network()
    return model, load_into(model, tensors, architecture="test_resnet", source="x", **more)


def test_a_counter_of_batches_is_loaded_whatever_its_shape() -> None:
    tensors = {k: torch.tensor([7]) if k.endswith("num_batches_tracked") else v for k, v in state(seed=1).items()}
    model, _ = loaded(tensors)
    counters = [v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters and all(int(value) == 7 for value in counters)


def test_a_stem_of_one_channel_gives_the_same_for_grey_images() -> None:
    torch.manual_seed(1)
    grey = timm.create_model("test_resnet", num_classes=4, in_chans=1).eval()
    model, report = loaded(grey.state_dict())
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.eval()(image.repeat(1, 3, 1, 1)), grey(image), atol=1e-5)
    assert "one-channel stem is spread over 3" in report.sentence()
    assert report.random == ()


def test_a_stem_of_three_channels_is_added_up_for_one_as_timm_does() -> None:
    colours = timm.create_model("test_resnet", num_classes=4).eval()
    grey = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    report = load_into(grey, colours.state_dict(), architecture="test_resnet", source="given")
    assert torch.equal(grey.conv1[0].weight, adapt_input_conv(1, colours.conv1[0].weight))
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(colours(image.repeat(1, 3, 1, 1)), grey.eval()(image), atol=1e-5)
    assert "its 3-channel stem is summed for one" in report.sentence() and report.random == ()


def test_a_stem_of_three_channels_is_repeated_for_four_as_timm_does() -> None:
    colours = timm.create_model("test_resnet", num_classes=4)
    four = timm.create_model("test_resnet", num_classes=4, in_chans=4)
    report = load_into(four, colours.state_dict(), architecture="test_resnet", source="given")
    assert torch.equal(four.conv1[0].weight, adapt_input_conv(4, colours.conv1[0].weight))
    assert "its 3-channel stem is repeated for 4" in report.sentence() and report.random == ()


def test_a_stem_of_four_channels_stays_random_and_is_refused_where_frozen() -> None:
    model, report = loaded(timm.create_model("test_resnet", num_classes=4, in_chans=4).state_dict())
    assert not report.sentence().startswith("100%")
    groups = layer_groups(model)
    with pytest.raises(BackboneError, match=r"leaves 1 tensor random .* stay frozen, e\.g\. conv1"):
        refuse_random(report, groups)
    refuse_random(report, groups, trained=[group.name for group in groups])


@pytest.mark.parametrize(
    "left_out", ["layer4.0.bn2.running_var", "layer4.0.bn2.running_mean", "layer4.0.bn2.bias", "layer1.0.conv1.weight"]
)
def test_one_tensor_that_is_left_out_is_never_all(left_out: str) -> None:
    tensors = state(seed=1)
    assert left_out in tensors
    del tensors[left_out]
    model, report = loaded(tensors)
    assert report.random == (left_out,)
    assert left_out in report.sentence()
    assert not report.sentence().startswith("100%")
    with pytest.raises(BackboneError, match="would stay frozen"):
        refuse_random(report, layer_groups(model))


@pytest.mark.parametrize("prefix", ["net.", "a.b.c.", "encoder.0.", "student.backbone.", "module.encoder_q."])
def test_any_prefix_that_the_matching_keys_share_is_taken_off(prefix: str) -> None:
    tensors = state(seed=1)
    mixed = {prefix + key: tensor for key, tensor in tensors.items()} | {"projector.weight": torch.zeros(3)}
    model, report = loaded(mixed)
    assert is_same(model, tensors)
    assert report.unexpected == ("projector.weight",)


@pytest.mark.parametrize(("first", "second"), [("teacher.", "student."), ("model_ema.", "model.")])
def test_of_two_sets_under_prefixes_the_averaged_one_is_taken_and_said(first: str, second: str) -> None:
    averaged, raw = state(seed=1), state(seed=2)
    model, report = loaded({second + k: v for k, v in raw.items()} | {first + k: v for k, v in averaged.items()})
    assert is_same(model, averaged)
    taken, other = first.rstrip("."), second.rstrip(".")
    assert f"of its sets of weights {taken} (--weights takes the other as x#{other})" in report.sentence()
    assert report.unexpected == ()


@pytest.mark.parametrize("names", [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("teacher", "student")])
def test_of_two_sets_the_averaged_one_is_taken_said_and_the_other_can_be_named(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    file, sets = tmp_path / "both.pth", [state(seed=1), state(seed=2)]
    torch.save({names[1]: sets[1], names[0]: sets[0], "optimizer": {"state": {}}}, file)
    named = file.with_name(f"both.pth#{names[1]}")
    model, report = loaded(read_weights(file))
    assert is_same(model, sets[0])
    assert all(torch.equal(read_weights(named)[key], sets[1][key]) for key in sets[1])
    assert f"of its sets of weights {names[0]} (--weights takes the other as x#{names[1]})" in report.sentence()
    with pytest.raises(BackboneError, match="no set of weights 'other'") as caught:
        read_weights(file.with_name("both.pth#other"))
    assert names[0] in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_at_loading(value: float) -> None:
    tensors = state(seed=1)
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(BackboneError, match=r"not finite, in layer2\.0\.conv1\.weight"):
        loaded(tensors)


def test_a_run_gives_its_model_and_an_unfinished_one_an_error(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(BackboneError, match="holds no model") as caught:
        model_of_run(tmp_path)
    assert "--resume" in caught.value.hint
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architecture": "test_resnet"}')
    assert model_of_run(tmp_path) == tmp_path / "model"
    assert model_of_run(tmp_path / "model") == tmp_path / "model"


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_set_under_a_prefix_can_be_named(tmp_path: Path, suffix: str) -> None:
    file, student = tmp_path / f"both.{suffix}", state(seed=2)
    content = under("teacher.", state(seed=1)) | under("student.", student)
    (save_file if suffix == "safetensors" else torch.save)(content, file)
    model, report = loaded(read_weights(file.with_name(f"{file.name}#student")))
    assert is_same(model, student)
    assert report.sentence() == "100% of the backbone's weights from x"
    with pytest.raises(BackboneError, match="no set of weights 'techer'") as caught:
        read_weights(file.with_name(f"{file.name}#techer"))
    assert all(name in caught.value.hint for name in ("teacher", "student"))


@pytest.mark.parametrize(
    ("nest", "taken", "other"),
    [
        (lambda raw, ema: {"params": raw, "params_ema": ema}, "params_ema", "params"),
        (lambda raw, ema: {"model": raw, "ema": {"module": ema, "decay": 0.9}}, "ema.module", "model"),
        (lambda raw, ema: {"checkpoint": {"model": raw, "model_ema": ema}}, "checkpoint.model_ema", "checkpoint.model"),
        (lambda raw, ema: {"state_dict": under("net.", raw) | under("ema.", ema)}, "ema", "net"),
    ],
)
def test_sets_are_found_in_containers_of_any_name_and_depth(
    tmp_path: Path, nest: Callable[..., Any], taken: str, other: str
) -> None:
    raw, averaged, file = state(seed=1), state(seed=2), tmp_path / "both.pth"
    torch.save({**nest(raw, averaged), "optimizer": {"state": {0: {"exp_avg.x": torch.zeros(2)}}}}, file)
    model, report = loaded(read_weights(file))
    assert is_same(model, averaged)
    assert f"of its sets of weights {taken} (--weights takes the other as x#{other})" in report.sentence()
    assert report.unexpected == ()
    assert is_same(loaded(read_weights(file.with_name(f"both.pth#{other}")))[0], raw)


@pytest.mark.parametrize("is_nested", [True, False])
def test_of_two_sets_the_complete_one_is_taken_before_the_averaged_one(tmp_path: Path, is_nested: bool) -> None:
    raw, averaged = state(seed=1), {k: v for k, v in state(seed=2).items() if "running" not in k}
    content = {"model": raw, "ema": averaged} if is_nested else under("model.", raw) | under("ema.", averaged)
    torch.save(content, tmp_path / "both.pth")
    model, report = loaded(read_weights(tmp_path / "both.pth"))
    assert is_same(model, raw)
    assert "of its sets of weights model (--weights takes the other as x#ema)" in report.sentence()
    assert loaded(read_weights(tmp_path / "both.pth#ema"))[1].random


@pytest.mark.parametrize("prefix", ["", "net.", "module.net."])
def test_another_layout_is_read_under_any_prefix_and_in_the_averaged_set(tmp_path: Path, prefix: str) -> None:
    def original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1", "head.norm": "norm"}
        names |= {"head.fc": "head", ".conv_dw": ".dwconv", ".mlp.fc": ".pwconv", ".blocks": ""}
        names |= {f"stages.{i}.downsample": f"downsample_layers.{i}" for i in range(1, 4)}
        found = {}
        for key, tensor in tensors.items():
            for own, theirs in names.items():
                key = key.replace(own, theirs)
            found[prefix + key] = tensor
        return found

    raw, averaged = (state(name="test_convnext", seed=seed) for seed in (1, 2))
    torch.save({"model": original(raw), "model_ema": original(averaged)}, tmp_path / "both.pth")
    model = network("test_convnext")
    report = load_into(model, read_weights(tmp_path / "both.pth"), architecture="test_convnext", source="x")
    assert is_same(model, averaged)
    taken = f"model_ema.{prefix}".rstrip(".")
    assert f"of its sets of weights {taken} (--weights takes the other as x#model)" in report.sentence()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused_and_named(dtype: torch.dtype) -> None:
    tensors = state(seed=1)
    tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"].to(dtype)
    with pytest.raises(BackboneError, match=rf"{dtype} in layer2\.0\.conv1\.weight"):
        loaded(tensors)


def test_a_number_too_large_for_the_network_is_named() -> None:
    tensors = state(seed=1)
    tensors["bn1.weight"] = torch.full_like(tensors["bn1.weight"], 1e300, dtype=torch.float64)
    with pytest.raises(BackboneError, match=r"not finite, in bn1\.weight"):
        loaded(tensors)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_eight_bit_floats_and_sparse_tensors_are_read(tmp_path: Path) -> None:
    tensors = state(seed=1)
    small = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in tensors.items()}
    model, _ = loaded(small)
    assert torch.equal(model.get_parameter("bn1.weight"), small["bn1.weight"].float())
    torch.save({**tensors, "fc.weight": tensors["fc.weight"].to_sparse()}, tmp_path / "sparse.pth")
    assert is_same(loaded(read_weights(tmp_path / "sparse.pth"))[0], tensors)


def test_a_checkpoint_of_timms_own_training_is_read(tmp_path: Path) -> None:
    tensors = state(seed=1)
    torch.save({"state_dict": tensors, "args": argparse.Namespace(lr=0.1), "metric": 0.5}, tmp_path / "timm.pth.tar")
    assert is_same(loaded(read_weights(tmp_path / "timm.pth.tar"))[0], tensors)


def test_what_a_refused_file_holds_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "metric": np.float64(0.5)}, tmp_path / "odd.pth")
    with pytest.raises(BackboneError, match=r"odd\.pth is refused.*it holds numpy\S*\.scalar\)$"):
        read_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"none.{suffix}").touch()
    with pytest.raises(BackboneError, match=rf"none\.{suffix} is empty"):
        read_weights(tmp_path / f"none.{suffix}")


def test_a_comparison_is_an_error_that_asks_for_one_of_its_runs(tmp_path: Path) -> None:
    for name in ("asked.toml", "compare.json"):
        (tmp_path / name).touch()
    with pytest.raises(BackboneError, match="is a comparison of several runs") as caught:
        model_of_run(tmp_path)
    assert "one of its runs" in caught.value.hint
