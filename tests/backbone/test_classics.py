"""The networks of the notes that timm lacks: each is a timm model like any other, with the figures of its paper."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from finetune.backbone import classics
from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.backbone.layers import LayerTable, layer_table
from finetune.backbone.load import architecture, load
from finetune.backbone.trace import trace
from finetune.errors import BackboneError
from finetune.types import FreezePlan, GroupPlan, LayerGroup
from tests.support import CLASSICS, on_meta, random_images

# The number of layer groups of the backbone.
NUM_GROUPS = {"lenet5": 4, "alexnet": 7, "zfnet": 7, "googlenet": 10, "inception_v2": 11, "resnet32": 4}
NUM_PARAMETERS = {
    "lenet5": 62_958,
    "alexnet": models.AlexNet_Weights.IMAGENET1K_V1.meta["num_params"],
    "zfnet": 62_357_608,
    "googlenet": models.GoogLeNet_Weights.IMAGENET1K_V1.meta["num_params"],  # without the auxiliary classifiers
    "inception_v2": 11_285_224,
    "resnet32": 464_154,
}
FIXED = ("lenet5", "zfnet")


@cache
def built(name: str) -> nn.Module:
    """A network for five classes at its small size; tests must leave it as it is."""
    size = {"img_size": CLASSICS[name]} if name in FIXED else {}
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **size).eval()


def images(name: str, *, count: int = 2) -> Tensor:
    return random_images(count, CLASSICS[name])


def full_table(name: str) -> LayerTable:
    model = on_meta(name).eval()
    return layer_table(model, image_size=tuple(model.pretrained_cfg["input_size"][1:]))


def plan_from(groups: tuple[LayerGroup, ...], first: str) -> FreezePlan:
    """Train a layer group and all that come after it."""
    start = [group.name for group in groups].index(first)
    return FreezePlan(
        tuple(
            GroupPlan(group.name, trains="all" if index >= start else "none",
                      norm_statistics="updated" if index >= start else "frozen")
            for index, group in enumerate(groups)
        )
    )  # fmt: skip


def test_all_six_are_registered() -> None:
    assert set(classics.CLASSICS) == set(CLASSICS)
    assert all(timm.is_model(name) for name in CLASSICS)


@pytest.mark.parametrize("name", CLASSICS)
def test_a_network_has_the_parameters_of_its_paper(name: str) -> None:
    model = on_meta(name).eval()
    own = {key: parameter.numel() for key, parameter in model.named_parameters() if not key.startswith("aux")}
    assert sum(own.values()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", CLASSICS)
def test_a_network_runs_at_its_own_size(name: str) -> None:
    model = on_meta(name).eval()
    found = model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
    assert found.shape == (2, model.num_classes) == (2, model.pretrained_cfg["num_classes"])


@pytest.mark.parametrize("name", CLASSICS)
def test_features_and_head_make_the_forward_pass(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        features = model.forward_features(images(name))
        hidden = model.forward_head(features, pre_logits=True)
        assert features.shape[1] == model.num_features
        assert hidden.shape == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(images(name)))
        assert torch.equal(model.get_classifier()(hidden), model(images(name)))


@pytest.mark.parametrize("name", CLASSICS)
def test_the_classifier_is_renewed_and_taken_away(name: str) -> None:
    model = on_meta(name).eval()
    old = model.get_classifier()
    model.reset_classifier(3)
    assert (model.get_classifier().out_features, model.num_classes) == (3, 3)
    assert model.get_classifier() is not old
    assert model.get_classifier().weight.is_meta
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    images = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    assert on_meta(name, num_classes=0).eval()(images).shape == (1, model.head_hidden_size)


@pytest.mark.parametrize("name", CLASSICS)
def test_every_parameter_is_in_one_layer_group(name: str) -> None:
    groups = layer_groups(built(name))
    assert sorted(key for group in groups for key in group.parameters) == sorted(
        key for key, _ in built(name).named_parameters()
    )
    assert len(groups) == NUM_GROUPS[name] + 1
    assert [group.is_head for group in groups] == [False] * NUM_GROUPS[name] + [True]
    assert len(groups[-1].parameters) == 2  # the classifier alone


@pytest.mark.parametrize("name", CLASSICS)
def test_the_end_of_every_layer_group_is_found(name: str) -> None:
    groups = layer_groups(built(name))
    traced = trace(built(name), groups, image_size=(CLASSICS[name], CLASSICS[name]))
    assert list(traced.ends) == [group.name for group in groups if not group.is_head]


def test_the_end_of_a_stage_of_resnet32_is_the_tensor_and_no_padded_copy() -> None:
    model = built("resnet32")
    traced = trace(model, layer_groups(model), image_size=(32, 32))
    assert [traced.ends[name] for name in ("layer1", "layer2")] == ["relu_10", "relu_20"]


@pytest.mark.parametrize("name", CLASSICS)
def test_top_1_trains_the_last_group_and_the_head_alone(name: str) -> None:
    model = built(name)
    groups = layer_groups(model)
    with freezing(model, plan_from(groups, groups[-2].name), groups):
        model.train()
        output = model(images(name))
        loss = output.sum()  # a tensor: no auxiliary classifier is at work
        loss.backward()
        moved = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.eval()
    assert moved == {*groups[-2].parameters, *groups[-1].parameters}


@pytest.mark.parametrize("name", CLASSICS)
def test_a_network_without_weights_says_so_and_one_with_has_a_file(name: str) -> None:
    assert timm.models.is_model_pretrained(name) == (name in ("alexnet", "googlenet"))


@pytest.mark.parametrize("name", ["lenet5", "resnet32"])
def test_a_network_is_loaded_for_other_classes_and_another_size(name: str) -> None:
    backbone = load(architecture(name, pretrained=False), num_classes=4, image_size=48)
    assert backbone.preprocessing.image_size == (48, 48)
    assert backbone.model(torch.zeros(1, 3, 48, 48)).shape == (1, 4)


@pytest.mark.parametrize("name", FIXED)
def test_a_picture_too_small_for_a_network_of_fixed_size_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="pixels or more are needed, not 8x8"):
        on_meta(name, img_size=8).eval()


def test_lenet_has_the_table_of_the_notes() -> None:
    table = full_table("lenet5")
    shapes = table.shapes_channels_last()
    assert [(r.name, s, r.num_activations, r.num_parameters) for r, s in zip(table.rows, shapes, strict=True)] == [
        ("conv1", (28, 28, 8), 6272, 608),
        ("pool1", (14, 14, 8), 1568, 0),
        ("conv2", (10, 10, 16), 1600, 3216),
        ("pool2", (5, 5, 16), 400, 0),
        ("fc3", (120,), 120, 48120),
        ("fc4", (84,), 84, 10164),
        ("softmax", (10,), 10, 850),
    ]


def test_zfnet_has_the_maps_of_the_paper() -> None:
    rows = {row.name: row for row in full_table("zfnet").rows}
    assert [rows[name].shape[1] for name in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5")] == [
        110, 55, 26, 13, 13, 6
    ]  # fmt: skip
    assert rows["conv1"].receptive_field == 7


def test_inception_v2_has_three_by_three_convolutions_for_five_by_five() -> None:
    model = on_meta("inception_v2").eval()
    kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert set(kernels) == {7, 3, 1}
    assert model.num_features == 1024
    rows = {row.name: row for row in full_table("inception_v2").rows}
    pair = [rows[f"inception3a.branch33.{index}.conv"].receptive_field for index in (0, 2)]
    jump = 8  # pixels between units after three halvings
    assert pair[1] - pair[0] == 2 * 2 * jump  # what one 5x5 would see


@pytest.mark.parametrize(
    ("name", "layer", "field"),
    [
        ("lenet5", "pool2", 16),
        ("alexnet", "features.12", 195),  # Source: Araujo et al. 2019, as published for AlexNet
        ("zfnet", "pool5", 171),
        ("googlenet", "inception5b.branch2.1.conv", 379),
        ("inception_v2", "inception5b.branch33.2.conv", 699),
        ("resnet32", "layer3.4.conv2", 137),
    ],
)
def test_every_map_has_its_receptive_field(name: str, layer: str, field: int) -> None:
    rows = full_table(name).rows
    maps = [row for row in rows if row.kind in ("conv", "norm", "pool") and not row.type.startswith("Adaptive")]
    assert all(row.receptive_field is not None for row in maps)
    assert next(row for row in rows if row.name == layer).receptive_field == field


def test_googlenet_and_alexnet_compute_what_torchvision_computes() -> None:
    for name, theirs in (("alexnet", models.alexnet()), ("googlenet", models.googlenet(init_weights=False))):
        ours = timm.create_model(name).eval()
        theirs.load_state_dict(ours.state_dict(), strict=False)
        with torch.no_grad():
            assert torch.equal(ours(images(name)), theirs.eval()(images(name)))


def test_googlenet_yields_auxiliary_logits_in_training_and_none_in_eval() -> None:
    model = built("googlenet")
    with torch.no_grad():
        assert isinstance(model(images("googlenet")), Tensor)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        output = model.train()(images("googlenet"))
        model.eval().load_state_dict(state)
    assert [logits.shape for logits in output] == [(2, 5)] * 3


def test_the_auxiliary_classifiers_of_googlenet_are_for_the_classes_of_the_data() -> None:
    model = on_meta("googlenet").eval()
    model.reset_classifier(3)
    assert [model.get_submodule(path).out_features for path in ("fc", "aux1.fc2", "aux2.fc2")] == [3, 3, 3]


def test_an_auxiliary_classifier_stands_in_the_group_that_it_judges() -> None:
    groups = {group.name: group for group in layer_groups(built("googlenet"))}
    holding = {name: [key[:4] for key in group.parameters if key.startswith("aux")] for name, group in groups.items()}
    assert {name: set(keys) for name, keys in holding.items() if keys} == {
        "inception4a": {"aux1"},
        "inception4d": {"aux2"},
    }


@pytest.mark.parametrize(
    ("first", "num_outputs"), [("head", 1), ("inception4e", 1), ("inception4d", 2), ("inception4a", 3), ("stem", 3)]
)
def test_an_auxiliary_classifier_is_left_out_where_its_group_is_frozen(first: str, num_outputs: int) -> None:
    model = built("googlenet")
    groups = layer_groups(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with freezing(model, plan_from(groups, first), groups), torch.no_grad():
        output = model.train()(images("googlenet"))
    model.eval().load_state_dict(state)
    assert (len(output) if isinstance(output, tuple) else 1) == num_outputs


def test_a_name_that_is_nearly_one_of_them_is_an_error_that_says_so() -> None:
    with pytest.raises(BackboneError, match="Did you mean 'lenet5'") as caught:
        architecture("lenet")
    assert "googlenet" in caught.value.hint
