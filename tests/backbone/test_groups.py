"""Layer groups: every parameter once, from input to output, the head last, under names that can be typed."""

from __future__ import annotations

import re
from functools import cache, partial

import pytest
import timm
import torch
from torch import nn

from finetune.backbone.groups import head_modules, head_parameters, layer_groups
from finetune.types import LayerGroup
from tests.support import mostly_slow

# One small network a family; the number is that of its layer groups, head included.
FAMILIES = {
    "test_resnet": 6,
    "test_vit": 8,
    "test_convnext": 6,
    "test_efficientnet": 7,
    "resnet18": 6,
    "resnetv2_18": 6,
    "resnet50_clip": 7,
    "mobilenetv2_035": 9,
    "mobilenetv3_small_050": 9,
    "mobilenetv4_conv_small_035": 8,
    "vgg11": 10,
    "vgg11_bn": 10,
    "inception_v3": 14,
    "inception_v4": 21,
    "inception_resnet_v2": 46,
    "inception_next_atto": 7,
    "efficientnet_b0": 9,
    "densenet121": 6,
    "mobilevit_xxs": 7,
    "regnetx_002": 6,
    "convnext_atto": 6,
    "swin_tiny_patch4_window7_224": 6,
    "vit_tiny_patch16_224": 14,
    "deit_tiny_distilled_patch16_224": 14,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_srelpos_small_patch16_224": 14,
    "vit_small_patch16_rope_mixed_224": 14,
    "eva02_tiny_patch14_224": 14,
    "beit_base_patch16_224": 14,
    "maxvit_tiny_tf_224": 7,
    "coatnet_0_224": 7,
    "coat_mini": 19,
    "fastvit_t8": 7,
    "xcit_nano_12_p16_224": 16,
    "poolformerv2_s12": 6,
    "caformer_s18": 6,
    "pit_ti_distilled_224": 5,
    "csatv2": 6,
    "rdnet_tiny": 6,
    "levit_128s": 5,
    "efficientformerv2_s0": 6,
    "efficientvim_m1": 6,
    "repvgg_a0": 6,
    "hrnet_w18_small": 7,
    "dla46_c": 8,
    "ghostnet_050": 12,
    "xception41": 15,
    "dm_nfnet_f0": 6,
    "tresnet_m": 6,
    "selecsls42": 9,
    "cspdarknet53": 7,
    "mixer_s32_224": 10,
    "gmlp_s16_224": 32,
    "cait_xxs24_224": 26,
    "crossvit_tiny_240": 5,
    "twins_pcpvt_small": 6,
    "visformer_tiny": 17,
    "volo_d1_224": 23,
    "davit_tiny": 6,
    "edgenext_xx_small": 6,
    "mvitv2_tiny": 6,
    "nest_tiny": 5,
    "focalnet_tiny_srf": 6,
    "hgnetv2_b0": 7,
    "tiny_vit_5m_224": 6,
    "efficientvit_b0": 7,
    "efficientvit_m0": 5,
    "starnet_s050": 6,
}
OUT_OF_ORDER = {
    "cait_xxs24_224",  # timm has its class-attention blocks overlap with the last blocks
    "coat_mini",  # the blocks of a stage share position encodings
    "efficientvim_m1",  # one norm and head for every stage
}


@cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
        if hasattr(model, "reset_classifier"):  # encoders have no head
            model.reset_classifier(5)
    return model


def check_groups(model: nn.Module, groups: tuple[LayerGroup, ...], *, has_head: bool = True) -> None:
    names = [group.name for group in groups]
    assert (names[0], names[-1] == "head") == ("stem", has_head)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*([.-][A-Za-z0-9_]+)*", name) for name in names)
    assert [group.is_head for group in groups] == [False] * (len(groups) - has_head) + [True] * has_head
    covered = [name for group in groups for name in group.parameters]
    assert sorted(covered) == sorted(name for name, _ in model.named_parameters())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert all(group.num_parameters == sum(sizes[name] for name in group.parameters) > 0 for group in groups)


def of_the_classes(model: nn.Module) -> set[str]:
    """Return the parameters whose shape follows the number of classes."""
    shapes = []
    for num_classes in (7, 5):
        with torch.device("meta"):
            model.reset_classifier(num_classes)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}


def first_uses(model: nn.Module, groups: tuple[LayerGroup, ...]) -> list[int]:
    """Return the layer group of every module with parameters of its own, in the order of first use."""
    order = {name: index for index, group in enumerate(groups) for name in group.parameters}
    used: dict[str, int] = {}
    hooks = []

    def note(path: str, index: int, *_: object) -> None:
        used.setdefault(path, index)

    for path, module in model.named_modules():
        own = [order[f"{path}.{name}"] for name, _ in module.named_parameters(recurse=False)] if path else []
        if own:
            hooks.append(module.register_forward_pre_hook(partial(note, path, max(own))))
    size = timm.data.resolve_model_data_config(model)["input_size"]
    with torch.no_grad(), torch.device("meta"):
        model.eval()(torch.zeros(1, *size))
    for hook in hooks:
        hook.remove()
    return list(used.values())


@pytest.mark.parametrize("name", mostly_slow([(name,) for name in FAMILIES], *[(n,) for n in [*FAMILIES][::6]]))
def test_groups_hold_every_parameter_once_in_the_order_of_use_and_the_head_what_follows_the_classes(name: str) -> None:
    model = on_meta(name)
    groups = layer_groups(model)
    check_groups(model, groups)
    assert len(groups) == FAMILIES[name]
    found = of_the_classes(model)
    assert found and found <= set(head_parameters(model))
    if name not in OUT_OF_ORDER:
        used = first_uses(model, groups)
        assert len(used) > 3
        assert used == sorted(used)


@pytest.mark.slow
@pytest.mark.parametrize("first", "abcdefghijklmnopqrstuvwxyz")
def test_every_architecture_of_timm_has_layer_groups(first: str) -> None:
    for name in timm.list_models(f"{first}*"):
        model = on_meta.__wrapped__(name)  # not kept
        groups = layer_groups(model)
        check_groups(model, groups, has_head=hasattr(model, "reset_classifier"))
        assert len(groups) >= 5, name
        assert max(group.num_parameters for group in groups) < 0.97 * sum(g.num_parameters for g in groups), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4 head"),
        ("vit_tiny_patch16_224", "stem " + " ".join(f"blocks.{i}" for i in range(12)) + " head"),
        (
            "vgg11",
            "stem features.3 features.6 features.8 features.11 features.13 features.16 features.18 pre_logits head",
        ),
        ("mobilenetv3_small_050", "stem blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 conv_head head"),
        ("swin_tiny_patch4_window7_224", "stem layers.0 layers.1 layers.2 layers.3 head"),
        ("rdnet_tiny", "stem dense_stages.0 dense_stages.1 dense_stages.5 dense_stages.6 head"),
        ("efficientvit_b0", "stem stages.0 stages.1 stages.2 stages.3 head.classifier.0 head"),
        ("selecsls42", "stem features.0 features.1 features.2 features.3 features.4 features.5 head.2 head"),
        ("coatnet_0_224", "stem stages.0 stages.1 stages.2 stages.3 head.pre_logits.fc head"),
    ],
)
def test_names_are_paths_of_stages_and_blocks(name: str, expected: str) -> None:
    assert " ".join(group.name for group in layer_groups(on_meta(name))) == expected


def test_groups_of_one_stage_are_told_apart_by_the_block() -> None:
    names = [group.name for group in layer_groups(on_meta("volo_d1_224"))]
    assert names[1:6] == ["network.0.0", "network.0.1", "network.0.2", "network.0.3", "network.1"]


def test_a_final_norm_belongs_to_the_last_group_of_the_backbone() -> None:
    for name in ("test_convnext", "densenet121", "swin_tiny_patch4_window7_224", "test_vit"):
        *_, last, head = layer_groups(on_meta(name))
        assert [key for key in last.parameters if "norm" in key.split(".")[-2]][-1].startswith(("head.", "norm", "f"))
        assert not [key for key in head.parameters if "norm" in key]


def test_both_heads_of_a_distilled_network_are_the_head() -> None:
    model = on_meta("deit_tiny_distilled_patch16_224")
    assert head_parameters(model) == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    assert len(head_modules(model)) == 2


def test_the_head_on_the_patch_tokens_of_volo_is_the_head() -> None:
    assert {"aux_head.weight", "head.weight"} <= set(head_parameters(on_meta("volo_d1_224")))


def test_a_network_without_a_head_has_backbone_groups_only() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_resnet", num_classes=0)
    assert [group.is_head for group in layer_groups(model)] == [False] * 5


def test_a_position_bias_that_all_blocks_share_belongs_to_the_stem() -> None:
    for name, key in (
        ("vit_srelpos_small_patch16_224", "shared_rel_pos.mlp.fc1.weight"),
        ("vit_small_patch16_rope_mixed_224", "rope.freqs"),
    ):
        assert key in layer_groups(on_meta(name))[0].parameters


class Toy(nn.Module):
    """A network of top-level children that timm knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        raise KeyError("broken")


def test_a_network_whose_matcher_fails_is_grouped_by_its_children() -> None:
    model = Toy()
    groups = layer_groups(model)
    check_groups(model, groups)
    assert [group.name for group in groups] == ["stem", "body", "head"]
    assert groups[0].parameters[-1] == "norm.bias"


def test_a_wrapped_network_is_grouped_by_the_children_of_the_wrapped_one() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = Toy()

        def get_classifier(self) -> nn.Module:
            return self.wrapped.head

    assert [group.name for group in layer_groups(Wrapper())] == ["stem", "wrapped.body", "head"]


def test_a_shared_parameter_counts_once() -> None:
    model = Toy()
    model.body[1].weight = model.body[0].weight
    groups = layer_groups(model)
    assert [name for group in groups for name in group.parameters].count("body.0.weight") == 1
    assert sum(group.num_parameters for group in groups) == sum(p.numel() for p in model.parameters())
