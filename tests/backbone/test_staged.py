"""A linear classifier on an inner layer group: made of the groups up to it and of nothing else."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.backbone.freeze import freezing
from finetune.backbone.groups import layer_groups
from finetune.backbone.staged import StagedClassifier, check_stage
from finetune.errors import RecipeError
from finetune.features.divide import divide
from finetune.types import FreezePlan, GroupPlan
from tests.support import network, random_images

# The layer group that is probed, and its number of features.
STAGES = {
    "test_resnet": ("layer2", 48),
    "test_vit": ("blocks.2", 64),
    "test_convnext": ("stages.1", 32),
    "test_efficientnet": ("blocks.1", 24),
}


def staged(model: nn.Module, at: str) -> StagedClassifier:
    return StagedClassifier(model, layer_groups(model), at=at, num_classes=3, image_size=(160, 160))


@pytest.mark.parametrize("name", STAGES)
def test_logits_are_the_head_on_the_averaged_output_of_the_group(name: str) -> None:
    at, num_features = STAGES[name]
    model = network(name)
    probe = staged(model, at).eval()
    seen: list[Tensor] = []
    model.get_submodule(at).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model.eval()(random_images(3, 160))
        mean = seen[-1].mean(dim=1) if seen[-1].ndim == 3 else seen[-1].mean(dim=(2, 3))
        assert mean.shape == (3, num_features)
        assert torch.equal(probe(random_images(3, 160)), probe.head(mean))


@pytest.mark.parametrize("name", STAGES)
def test_later_layer_groups_do_not_matter_and_earlier_ones_do(name: str) -> None:
    model, at = network(name), STAGES[name][0]
    groups, probe = layer_groups(model), staged(model, at).eval()
    index = [group.name for group in groups].index(at)
    with torch.no_grad():
        before = probe(random_images(3, 160))
        for key in (key for group in groups[index + 1 :] for key in group.parameters):
            model.get_parameter(key).add_(1)
        assert torch.equal(probe(random_images(3, 160)), before)
        model.get_parameter(groups[index].parameters[-1]).add_(1)
        assert not torch.equal(probe(random_images(3, 160)), before)


@pytest.mark.parametrize("name", STAGES)
def test_layer_groups_cover_all_parameters_and_keep_their_names(name: str) -> None:
    model, at = network(name), STAGES[name][0]
    groups, probe = layer_groups(model), staged(model, at)
    own = probe.layer_groups(groups)
    names = [group.name for group in groups]
    assert [group.name for group in own] == [*names[: names.index(at) + 1], "head"]
    assert [group.is_head for group in own] == [False] * (len(own) - 1) + [True]
    assert sorted(key for group in own for key in group.parameters) == sorted(dict(probe.named_parameters()))
    assert sum(group.num_parameters for group in own) == sum(p.numel() for p in probe.parameters())
    assert own[1].num_parameters == groups[1].num_parameters


@pytest.mark.parametrize("name", STAGES)
def test_the_state_goes_round_through_another_network(name: str) -> None:
    at = STAGES[name][0]
    first, second = staged(network(name), at).eval(), staged(timm.create_model(name, num_classes=4), at).eval()
    with torch.no_grad():
        assert not torch.equal(first(random_images(3, 160)), second(random_images(3, 160)))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(random_images(3, 160)), second(random_images(3, 160)))


def test_state_keys_are_timms_under_trunk_and_the_head() -> None:
    model = network("test_resnet")
    keys = set(staged(model, "layer1").state_dict())
    inner = {key for key in model.state_dict() if key.startswith(("conv1", "bn1", "layer1."))}
    assert keys == {f"trunk.{key}" for key in inner} | {"head.weight", "head.bias"}


def test_the_head_depends_on_the_random_state_alone() -> None:
    model = network("test_resnet")
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(staged(model, "layer2").head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_training_the_head_leaves_trunk_and_statistics_bit_identical() -> None:
    model = network("test_resnet")
    probe = staged(model, "layer2")
    groups = probe.layer_groups(layer_groups(model))
    before = copy.deepcopy(probe.state_dict())
    plans = (GroupPlan(group.name, "all" if group.is_head else "none") for group in groups)
    with freezing(probe, FreezePlan(tuple(plans)), groups):
        optimiser = torch.optim.SGD([p for p in probe.parameters() if p.requires_grad], lr=1.0)
        for _ in range(2):
            nn.functional.cross_entropy(probe.train()(random_images(3, 160)), torch.arange(3)).backward()
            optimiser.step()
    moved = {key for key, tensor in probe.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {"head.weight", "head.bias"}


def test_a_layer_group_that_is_not_there_is_an_error_with_the_nearest_names() -> None:
    groups = layer_groups(network("test_resnet"))
    assert check_stage("layer2", groups) == "layer2"
    with pytest.raises(RecipeError, match=r"probe_at = 'layr2'.*Did you mean 'layer2'") as caught:
        check_stage("layr2", groups)
    assert caught.value.hint == (
        "This backbone has stem, layer1, layer2, layer3, layer4. Several: layer3+layer4; all: all."
    )
    with pytest.raises(RecipeError):
        check_stage("head", groups)


@pytest.mark.parametrize("name", STAGES)
def test_an_inner_probe_is_divided_before_its_head(name: str) -> None:
    at, num_features = STAGES[name]
    model = network(name)
    probe = staged(model, at)
    groups = probe.layer_groups(layer_groups(model))
    plan = FreezePlan(tuple(GroupPlan(group.name, "all" if group.is_head else "none") for group in groups))
    assert divide(probe, plan, groups, image_size=(160, 160)).shapes == ((num_features,),)


@pytest.mark.parametrize("name", STAGES)
def test_several_groups_stand_side_by_side_in_the_order_of_the_network(name: str) -> None:
    model = network(name)
    names = [group.name for group in layer_groups(model) if not group.is_head][1:3]
    both = staged(model, f"{names[1]}+{names[0]}").eval()
    assert both.at == "+".join(names)
    with torch.no_grad():
        alone = [staged(model, at).eval().features(random_images(3, 160)) for at in names]
        assert torch.equal(both.features(random_images(3, 160)), torch.cat(alone, dim=1))
    assert both.widths == [features.shape[1] for features in alone]


def test_all_is_every_group_of_the_backbone() -> None:
    model = network("test_resnet")
    probe = staged(model, "all")
    names = [group.name for group in layer_groups(model) if not group.is_head]
    assert probe.at == "+".join(names) == check_stage("all", layer_groups(model))
    assert [group.name for group in probe.layer_groups(layer_groups(model))] == [*names, "head"]


def test_a_typo_among_several_is_named() -> None:
    with pytest.raises(RecipeError, match="probe_at = 'layr4'"):
        check_stage("layer2+layr4", layer_groups(network("test_resnet")))
